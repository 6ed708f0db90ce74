"""Every baseline does what its paper says: where it converges, where it stops, where it cycles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from comal_fast.game import (
    PAPER_START,
    SOLVERS,
    duality_gap,
    egpo,
    inpo,
    ipo,
    is_falling,
    kl_divergence,
    nash_md,
    nash_policy,
    omwu,
    paper_game,
    sppo,
)
from comal_fast.game.baselines import square_projection
from comal_fast.game.families import bradley_terry_game, random_game

GAME = paper_game()
NASH = nash_policy(GAME.matrix)


def gaps(trajectory) -> np.ndarray:
    return duality_gap(GAME.matrix, trajectory.policies)


@pytest.fixture(scope="module")
def regularised_nash():
    return inpo(GAME.matrix, PAPER_START, outer=1, inner=4000).policies[-1]


def test_egpo_converges_linearly_to_the_regularised_nash(regularised_nash):
    trajectory = egpo(GAME.matrix, PAPER_START)
    np.testing.assert_allclose(trajectory.policies[-1], regularised_nash, atol=1e-12)
    kl = kl_divergence(regularised_nash, trajectory.log_policies[:300])
    # the rate of arXiv 2503.08942: a factor 1 − τ/η per step at most
    assert (kl[1:] <= kl[:-1] * (1 - 0.1 * 0.3) + 1e-25).all()
    assert gaps(trajectory)[-1] == pytest.approx(0.0588, abs=5e-5)
    assert trajectory.calls[-1] == 2 * trajectory.steps[-1] == 2000


def test_nash_md_meets_the_bound_of_its_theorem(regularised_nash):
    trajectory = nash_md(GAME.matrix, PAPER_START, outer=5000)
    kl = kl_divergence(regularised_nash, trajectory.log_policies[1:])
    t = np.arange(1, 5001)
    assert (kl <= 8 / (0.1**2 * (t + 1))).all()
    assert kl[-1] < 1e-6 and gaps(trajectory)[-1] == pytest.approx(0.0588, abs=5e-4)


def test_omwu_converges_in_the_last_iterate_where_ipo_spirals_outwards():
    optimistic = omwu(GAME.matrix, PAPER_START, eta=1.0, outer=2000)
    assert gaps(optimistic)[-1] < 1e-12
    assert gaps(ipo(GAME.matrix, PAPER_START, eta=1.0))[-1] > 0.5
    slow = kl_divergence(NASH, omwu(GAME.matrix, PAPER_START, outer=2000).log_policies)
    assert is_falling(slow[::100]) and slow[-1] < slow[0] / 1000


def test_omwu_looks_one_step_ahead():
    trajectory = omwu(GAME.matrix, PAPER_START, eta=0.7, outer=3)
    before, now, then = trajectory.policies[1:]
    expected = now * np.exp(GAME.matrix @ (2 * now - before) / 0.7)
    np.testing.assert_allclose(then, expected / expected.sum(), rtol=1e-13)
    first = trajectory.policies[0] * np.exp(GAME.matrix @ trajectory.policies[0] / 0.7)
    np.testing.assert_allclose(before, first / first.sum(), rtol=1e-13)


def test_sppo_cycles_like_ipo():
    trajectory = sppo(GAME.matrix, PAPER_START)
    gap = gaps(trajectory)
    assert gap.min() >= 0.12 and gap[501:].min() >= 0.19
    assert (np.diff(kl_divergence(NASH, trajectory.log_policies)) > 0).all()
    assert set(trajectory.policies[1000:].argmax(axis=1)) == {0, 1, 2}
    small, same = (f(GAME.matrix, PAPER_START, eta=100.0, outer=50) for f in (sppo, ipo))
    np.testing.assert_allclose(small.policies[-1], same.policies[-1], atol=1e-5)


@pytest.mark.parametrize("scale", [0.02, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_square_projection_minimises_the_loss_of_sppo(seed, scale):
    rng = np.random.default_rng(seed)
    policy = rng.dirichlet(np.ones(5))
    target = scale * rng.normal(size=5)
    target -= policy @ target

    def loss(theta: np.ndarray) -> float:
        log_p = theta - np.logaddexp.reduce(theta)
        return policy @ (log_p - np.log(policy) - target) ** 2

    found = minimize(loss, np.log(policy), method="BFGS", options={"gtol": 1e-10}).x
    exact = square_projection(np.log(policy), target)
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-14)
    assert loss(exact) <= loss(found) + 1e-15
    np.testing.assert_allclose(np.exp(exact), np.exp(found) / np.exp(found).sum(), atol=2e-6)
    # stationarity, exactly: (log p/π − target) / (p/π) is the same for every response
    residual = (exact - np.log(policy) - target) * policy / np.exp(exact)
    np.testing.assert_allclose(residual, residual.mean(), rtol=1e-8, atol=1e-12)


def test_everything_without_a_reference_solves_a_transitive_game():
    game = bradley_terry_game(6, 1)
    for solver in (ipo, sppo, omwu):
        trajectory = solver(game.matrix, eta=0.3)
        assert duality_gap(game.matrix, trajectory.policies[-1]) < 1e-6
        assert is_falling(kl_divergence(nash_policy(game.matrix), trajectory.log_policies))


def test_tau_decides_where_static_inpo_stops():
    last = [gaps(inpo(GAME.matrix, PAPER_START, tau=tau, outer=200))[-1] for tau in (0.01, 0.1, 1)]
    assert last == sorted(last) and last[0] == pytest.approx(9.1e-3, rel=0.05)
    assert last[1] == pytest.approx(0.0588, abs=5e-5) and last[2] > 0.2


@pytest.mark.parametrize("name", ["ipo", "sppo", "omwu", "nash-md", "egpo"])
def test_rows_kept_and_batches(name):
    matrices = np.stack([random_game(5, seed).matrix for seed in range(2)])
    whole = SOLVERS[name](matrices[1], outer=10)
    thin = SOLVERS[name](matrices, outer=10, every=4)
    assert thin.steps[:, 1].tolist() == [0, 4, 8, 10]
    np.testing.assert_allclose(thin.policies[:, 1], whole.policies[[0, 4, 8, 10]], atol=1e-14)
    per_step = 2 if name == "egpo" else 1
    assert thin.calls[-1].tolist() == [10 * per_step] * 2


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 10), st.integers(0, 2**32 - 1), st.floats(0.2, 2))
def test_the_three_regularised_solvers_agree(n, seed, tau):
    matrix = random_game(n, seed).matrix
    start = np.random.default_rng(seed).dirichlet(np.full(n, 2.0))
    eta = tau + 2.0
    nash = inpo(matrix, start, eta=eta, tau=tau, outer=1, inner=2000).policies[-1]
    fixed = start * np.exp(matrix @ nash / tau)
    np.testing.assert_allclose(nash, fixed / fixed.sum(), atol=1e-10)
    extra = egpo(matrix, start, eta=eta, tau=tau, outer=2000).policies[-1]
    np.testing.assert_allclose(extra, nash, atol=1e-10)
    md = nash_md(matrix, start, tau=tau, outer=2000).log_policies[-1]
    assert kl_divergence(nash, md) <= min(8 / (tau**2 * 2001), 1e-4)


@pytest.mark.parametrize("solver", [sppo, omwu, egpo])
def test_bad_options(solver):
    with pytest.raises(ValueError, match="eta = -1"):
        solver(GAME.matrix, eta=-1.0)
    with pytest.raises(ValueError, match="outer = 0"):
        solver(GAME.matrix, outer=0)


def test_bad_tau_of_nash_md():
    with pytest.raises(ValueError, match="tau = 0: it must be positive"):
        nash_md(GAME.matrix, tau=0.0)
