"""How accurate an inner solve is, what the theory asks of it, and solves that stop within that."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.game import (
    PAPER_START,
    comal,
    duality_gap,
    inpo,
    kl_divergence,
    paper_game,
    regularised_gap,
)
from comal_fast.game.families import random_game

GAME = paper_game()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_regularised_gap_is_the_best_responses_gain(n, seed):
    rng = np.random.default_rng(seed)
    matrix, tau = random_game(n, seed).matrix, rng.uniform(0.1, 2)
    policy, reference = rng.dirichlet(np.ones(n), size=2)

    def payoff(p: np.ndarray) -> float:  # J_τ(p, π)
        return p @ matrix @ policy - tau * kl_divergence(p, np.log(reference)) + tau * own

    own = kl_divergence(policy, np.log(reference))
    gain = matrix @ policy - 0.5
    gap = regularised_gap(np.log(policy), np.log(reference), gain, tau)
    best = reference * np.exp(gain / tau)
    assert gap == pytest.approx(2 * (payoff(best / best.sum()) - 0.5), abs=1e-12)
    for other in rng.dirichlet(np.ones(n), size=20):
        assert 2 * (payoff(other) - 0.5) <= gap + 1e-12
    nash = inpo(matrix, reference, eta=max(2.0, tau), tau=tau, outer=1, inner=4000).policies[-1]
    assert gap >= 2 * tau * kl_divergence(policy, np.log(nash)) - 1e-9


def test_adaptive_solves_stay_within_the_budget_and_cost_less():
    fixed = comal(GAME.matrix, PAPER_START)
    adaptive = comal(GAME.matrix, PAPER_START, adaptive=True, inner=500)
    assert fixed.inner_error is not None and adaptive.inner_error is not None
    t = np.arange(1, 41)
    np.testing.assert_allclose(adaptive.budget, adaptive.budget[0] / t**4)
    uniform = regularised_gap(
        np.log(PAPER_START), np.log(PAPER_START), GAME.matrix @ PAPER_START - 0.5, 0.1
    )
    assert adaptive.budget[0] == pytest.approx(uniform / 9)
    assert (adaptive.inner_error <= adaptive.budget).all()
    assert adaptive.calls[-1] < fixed.calls[-1] == 2001
    assert adaptive.calls[-1] == adaptive.steps[-1] + 1
    gap = duality_gap(GAME.matrix, adaptive.policies)
    assert gap[-1] < 1e-3
    given_c1 = comal(GAME.matrix, PAPER_START, c1=0.5).budget
    np.testing.assert_allclose(given_c1, 0.5 / (9 * t**4))


def test_a_batch_is_its_games():
    matrices = np.stack([random_game(6, seed).matrix for seed in range(3)])
    starts = np.random.default_rng(0).dirichlet(np.ones(6), size=3)
    for name in ("inpo", "dpo-raw"):
        options = {"prox": name, "outer": 4, "adaptive": True, "inner": 200}
        together = comal(matrices, starts, **options)
        for g in range(3):
            alone = comal(matrices[g], starts[g], **options)
            np.testing.assert_allclose(together.policies[:, g], alone.policies, atol=1e-12)
            np.testing.assert_array_equal(together.calls[:, g], alone.calls)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"prox": "ppo"}, "prox = 'ppo'"), ({"c1": 0.0}, "c1 = 0"), ({"c1": np.nan}, "c1 = nan")],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        comal(GAME.matrix, **options)
