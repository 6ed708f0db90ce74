"""Every number that the paper's synthetic game must give."""

import numpy as np
import pytest

from comal_fast.game import (
    PAPER_START,
    comal,
    duality_gap,
    inpo,
    ipo,
    is_unique,
    kl_divergence,
    mirror_step,
    nash_policy,
    paper_game,
    strict_cycle,
)

GAME = paper_game()
NASH = np.array([4, 3, 4]) / 11


def test_matrix_is_the_cycle_of_the_paper():
    a, b, c = range(3)
    assert (GAME.matrix[b, a], GAME.matrix[c, b], GAME.matrix[a, c]) == (0.9, 0.9, 0.8)
    assert strict_cycle(GAME.matrix, GAME.names) == ["a", "c", "b"]


def test_nash_is_exact():
    np.testing.assert_allclose(nash_policy(GAME.matrix), NASH, rtol=0, atol=1e-15)
    assert is_unique(GAME.matrix, nash_policy(GAME.matrix))


def test_comal_gaps_and_kl():
    trajectory = comal(GAME.matrix, PAPER_START)
    gap = duality_gap(GAME.matrix, trajectory.policies)
    assert gap.shape == (41,)
    np.testing.assert_allclose(
        gap[[0, 10, 20, 30, 40]], [0.28, 1.1e-4, 6.7e-8, 4.6e-11, 1.2e-14], rtol=0.06
    )
    kl = kl_divergence(NASH, trajectory.log_policies)
    # a strict decrease, far under the rounding of a plain Σ p log(p/q)
    assert (np.diff(kl) < 0).all()
    assert 0 < kl[-1] < 1e-26


def test_step_counts():
    assert comal(GAME.matrix, outer=3, inner=7).steps.tolist() == [0, 7, 14, 21]
    assert ipo(GAME.matrix, outer=2).steps.tolist() == [0, 1, 2]


def test_static_inpo_stops_at_the_regularised_nash():
    trajectory = inpo(GAME.matrix, PAPER_START)
    policy = trajectory.policies[-1]
    np.testing.assert_allclose(policy, [0.275, 0.280, 0.445], atol=5e-4)
    assert duality_gap(GAME.matrix, policy) == pytest.approx(0.0588, abs=5e-5)
    # stationarity of the regularised game, derived apart: π ∝ π_ref exp(P(y ≻ π)/τ)
    target = np.array(PAPER_START) * np.exp(GAME.matrix @ policy / 0.1)
    np.testing.assert_allclose(policy, target / target.sum(), atol=1e-12)


def test_iterative_ipo_spirals_outwards():
    trajectory = ipo(GAME.matrix, PAPER_START)
    gap = duality_gap(GAME.matrix, trajectory.policies)
    assert len(gap) == 2001
    assert gap.min() >= 0.12
    assert gap[501:].min() >= 0.20
    assert gap[-1] == pytest.approx(0.77, abs=5e-3)
    kl = kl_divergence(NASH, trajectory.log_policies)
    assert (np.diff(kl) > 0).all()  # outwards, at every step
    assert set(trajectory.policies[1000:].argmax(axis=1)) == {0, 1, 2}  # and around


def test_mirror_step_is_the_closed_form():
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
    eta, tau = 0.7, 0.2
    expected = policy ** (1 - tau / eta) * reference ** (tau / eta)
    expected = expected * np.exp(GAME.matrix @ policy / eta)
    got = np.exp(mirror_step(np.log(policy), np.log(reference), GAME.matrix - 0.5, eta, tau))
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-13)
