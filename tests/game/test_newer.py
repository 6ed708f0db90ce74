"""Solvers after the paper: each does what its own says, in closed form or at its rate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.game import (
    PAPER_START,
    advantage,
    apo,
    comal,
    duality_gap,
    inpo,
    ipo,
    is_falling,
    kl_divergence,
    mnpo,
    nash_policy,
    nash_prox,
    omwu,
    onpo,
    paper_game,
    rspo,
)
from comal_fast.game.families import bradley_terry_game, cyclic_game, random_game
from comal_fast.game.newer import forward_step

GAME = paper_game()
NASH = nash_policy(GAME.matrix)
SETTINGS = {"eta": 1.0, "tau": 0.2}


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - np.logaddexp.reduce(x))


def test_onpo_is_optimistic_weights_with_a_longer_first_step():
    """With a flat π_{−1} its first step is twice as long; from there on the updates are one."""
    ours = onpo(GAME.matrix, PAPER_START, eta=0.7, outer=30)
    log_policies, gains = ours.log_policies, ours.policies @ GAME.matrix.T
    np.testing.assert_allclose(
        ours.policies[1], softmax(log_policies[0] + 2 * gains[0] / 0.7), rtol=1e-13
    )
    ahead = log_policies[1:-1] + (2 * gains[1:-1] - gains[:-2]) / 0.7
    for policy, logits in zip(ours.policies[2:], ahead, strict=True):
        np.testing.assert_allclose(policy, softmax(logits), rtol=1e-12)
    assert ours.calls[-1] == ours.steps[-1] == 30


@pytest.mark.parametrize("seed", range(3))
def test_onpos_mean_policy_closes_its_gap_like_one_over_t(seed):
    """arXiv 2502.16852's theorem, η ≥ the payoff range: T · gap of the mean policy is bounded."""
    game = random_game(8, seed)
    policies = onpo(game.matrix, eta=1.0, outer=4000).policies[1:]
    means = policies.cumsum(axis=0) / np.arange(1, 4001)[:, None]
    steps = np.array([10, 100, 1000, 4000])
    gaps = duality_gap(game.matrix, means[steps - 1])
    assert (steps * gaps <= 4 * np.log(8)).all() and gaps[-1] < gaps[0] / 50


def test_nash_prox_reaches_the_nash_and_its_inner_solve_the_regularised_one():
    one = nash_prox(GAME.matrix, PAPER_START, eta=0.5, outer=1, inner=2000)
    solved = inpo(GAME.matrix, PAPER_START, outer=1, inner=4000)
    np.testing.assert_allclose(one.policies[-1], solved.policies[-1], atol=1e-10)
    whole = nash_prox(GAME.matrix, PAPER_START, eta=0.5, outer=40, inner=100)
    kl = kl_divergence(NASH, whole.log_policies)
    assert is_falling(kl) and duality_gap(GAME.matrix, whole.policies[-1]) < 1e-10
    ratios = kl[2:15] / kl[1:14]  # the last iterate converges linearly
    assert ratios.max() < 0.5


def test_nash_prox_follows_the_policy_gradient():
    """The step is the gradient of J_τ over logits, found by differences."""
    rng = np.random.default_rng(1)
    game, start = random_game(5, 3), rng.dirichlet(np.ones(5))
    two = nash_prox(game.matrix, start, eta=10.0, tau=0.3, outer=1, inner=2)
    first = nash_prox(game.matrix, start, eta=10.0, tau=0.3, outer=1, inner=1)
    now = first.log_policies[-1]
    a = advantage(game.matrix)

    def value(theta: np.ndarray) -> float:
        p = softmax(theta)
        return p @ a @ np.exp(now) - 0.3 * (p @ np.log(p / start))

    h = 1e-6
    gradient = [(value(now + h * e) - value(now - h * e)) / (2 * h) for e in np.eye(5)]
    np.testing.assert_allclose(
        two.policies[-1], softmax(now + np.array(gradient) / 10.0), atol=1e-9
    )


def test_mnpo_with_one_opponent_is_inpo_and_more_stop_at_the_same_policy():
    one = mnpo(GAME.matrix, PAPER_START, opponents=1, **SETTINGS, outer=200)
    same = inpo(GAME.matrix, PAPER_START, **SETTINGS, outer=200, inner=1)
    np.testing.assert_allclose(one.policies, same.policies, atol=1e-13)
    three = mnpo(GAME.matrix, PAPER_START, opponents=3, tau=0.4, eta=2.0, outer=2000)
    still = inpo(GAME.matrix, PAPER_START, tau=0.4, eta=2.0, outer=1, inner=2000)
    np.testing.assert_allclose(three.policies[-1], still.policies[-1], atol=1e-10)


def test_mnpo_takes_geometric_means():
    t = mnpo(GAME.matrix, PAPER_START, opponents=2, **SETTINGS, outer=3)
    log_policies, gains = t.log_policies, t.policies @ GAME.matrix.T
    mean = [0.8 * log_policies[k] + gains[k] for k in (1, 2)]
    expected = softmax(0.2 * log_policies[0] + (mean[0] + mean[1]) / 2)
    np.testing.assert_allclose(t.policies[3], expected, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(1e-6, 1e3))
@settings(max_examples=60, deadline=None)
def test_forward_step_is_stationary(seed, n, weight):
    rng = np.random.default_rng(seed)
    target, reference = 3 * rng.normal(size=n), rng.dirichlet(np.ones(n))
    p = np.exp(forward_step(target, np.log(reference), weight))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    slope = target - np.log(p) + weight * reference / p
    np.testing.assert_allclose(slope, slope.mean(), rtol=1e-8, atol=1e-8 * (1 + weight))


def test_rspo_reaches_the_nash_of_the_game_regularised_both_ways():
    plain = rspo(GAME.matrix, PAPER_START, forward=0.0, **SETTINGS, outer=40)
    same = inpo(GAME.matrix, PAPER_START, **SETTINGS, outer=40)
    np.testing.assert_allclose(plain.policies, same.policies, atol=1e-13)
    both = rspo(GAME.matrix, PAPER_START, forward=0.1, **SETTINGS, outer=40)
    last, start = both.policies[-1], np.array(PAPER_START)
    slope = GAME.matrix @ last - 0.2 * np.log(last / start) + 0.1 * start / last
    np.testing.assert_allclose(slope, slope.mean(), atol=1e-10)
    single = rspo(GAME.matrix, PAPER_START, forward=0.1, **SETTINGS, outer=40, inner=1)
    kl = kl_divergence(last, single.log_policies)
    assert (kl[1:20] < 0.9 * kl[:19]).all()  # linearly, to that policy
    # the forward term keeps more of the reference than the reverse one alone
    assert kl_divergence(start, np.log(last)) < kl_divergence(start, same.log_policies[-1])


def test_apo_grows_to_steps_of_one_over_one_minus_alpha():
    """A reward game, P − ½ = r_i − r_j: every win rate is r up to a constant, so that log π_T is r
    times the sum of Nesterov's steps; the limit is arXiv 2410.06293's speed-up."""
    r = np.array([0.0, 0.02, 0.05, 0.07])
    matrix = 0.5 + r[:, None] - r
    alpha, eta = 0.6, 4.0
    t = apo(matrix, eta=eta, momentum=alpha, outer=12)
    slopes = (t.log_policies[:, 3] - t.log_policies[:, 0]) / (r[3] - r[0])
    steps = np.diff(slopes) * eta
    # of log π̂ the step is v_t = 1 + α v_{t−1}; of π, v_t + α (v_t − v_{t−1})
    v = np.cumsum(alpha ** np.arange(12))
    np.testing.assert_allclose(steps, v + alpha * np.diff(v, prepend=0.0), rtol=1e-9)
    assert steps[-1] == pytest.approx(1 / (1 - alpha), rel=0.01)
    plain = ipo(matrix, eta=eta, outer=12)
    np.testing.assert_allclose(
        apo(matrix, eta=eta, momentum=0.0, outer=12).policies, plain.policies, atol=1e-13
    )


def test_apo_helps_where_preferences_are_transitive_and_harms_in_a_cycle():
    ordered = bradley_terry_game(6, 1)
    fast, slow = (solver(ordered.matrix, eta=1.0, outer=150) for solver in (apo, ipo))
    assert duality_gap(ordered.matrix, fast.policies[-1]) < 0.5 * duality_gap(
        ordered.matrix, slow.policies[-1]
    )
    away, cycling = (
        kl_divergence(NASH, solver(GAME.matrix, PAPER_START, outer=200).log_policies[-1])
        for solver in (apo, ipo)
    )
    assert away > cycling


@pytest.mark.parametrize("solver", [onpo, nash_prox, mnpo, rspo, apo])
def test_what_is_impossible_stays_so(solver):
    t = solver(GAME.matrix, [0.5, 0.5, 0.0], outer=5)
    assert (t.policies[:, 2] == 0).all() and np.isfinite(t.policies).all()


@pytest.mark.parametrize("solver", [onpo, nash_prox, mnpo, rspo, apo])
def test_a_batch_is_its_games(solver):
    games = [random_game(4, seed) for seed in (1, 2)]
    together = solver(np.stack([game.matrix for game in games]), outer=6)
    for g, game in enumerate(games):
        alone = solver(game.matrix, outer=6)
        np.testing.assert_allclose(together.policies[:, g], alone.policies, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "option", "message"),
    [
        (mnpo, {"opponents": 0}, "opponents = 0: it must be a number from 1 to 1000"),
        (rspo, {"forward": -0.1}, "forward = -0.1: it must be a number from 0"),
        (apo, {"momentum": 1.0}, "momentum = 1: it must be a number from 0 below 1"),
        (comal, {"method": "magic"}, "method = 'magic': it must be one of mirror, optimistic"),
        (comal, {"method": "optimistic", "prox": "dpo-raw"}, "takes no other win rates"),
        (comal, {"eta": "best"}, "eta = 'best': it must be a number, or 'auto'"),
        (comal, {"eta": "auto", "adaptive": True}, "adaptive has no effect with eta = 'auto'"),
        (comal, {"eta": "auto", "prox": "dpo"}, "prox has no effect with eta = 'auto'"),
    ],
)
def test_bad_options(solver, option, message):
    with pytest.raises(ValueError, match=message):
        solver(GAME.matrix, **option)


@pytest.mark.parametrize("method", ["optimistic", "extragradient"])
@pytest.mark.parametrize("prox", ["inpo", "dpo", "sppo"])
def test_other_inner_methods_solve_the_same_games(method, prox):
    options = {"eta": 1.0, "tau": 0.05, "outer": 12, "inner": 400}
    ours = comal(GAME.matrix, PAPER_START, method=method, prox=prox, **options)
    step = comal(GAME.matrix, PAPER_START, eta=4.0, tau=0.05, outer=12, inner=4000)
    np.testing.assert_allclose(ours.policies, step.policies, atol=1e-9)
    calls = {"optimistic": 4801, "extragradient": 9601}
    assert ours.calls[-1] == calls[method]


def test_optimistic_inner_solves_stand_steps_that_mirror_ones_do_not():
    """Near a point with curvature L: η > √3 L, against L²/2τ for the prox step."""
    game = cyclic_game(7, 3)
    options = {"eta": 0.5, "tau": 0.003, "outer": 30, "inner": 400}
    gaps = [
        duality_gap(game.matrix, comal(game.matrix, method=m, **options).policies[-1])
        for m in ("optimistic", "mirror")
    ]
    assert gaps[0] < 1e-10 and gaps[1] > 0.1


def test_omwu_and_one_long_inner_solve_agree_where_the_pull_is_small():
    free = omwu(GAME.matrix, PAPER_START, eta=1.0, outer=50)
    pulled = comal(
        GAME.matrix, PAPER_START, method="optimistic", eta=1.0, tau=1e-9, outer=1, inner=50
    )
    np.testing.assert_allclose(pulled.policies[-1], free.policies[-1], atol=1e-6)
