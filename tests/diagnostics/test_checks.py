"""Each check on histories made by the exact solvers and by hand: what fires it, and what does not.

The exact game plays the part of a run: per iterate its win rates against the earlier ones, and the
distances between log-policies. Only the reading of a real run is left to test_runs.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics import CHECKS, Evaluated, Finding, History, unbiased_variance
from comal_fast.diagnostics.cycling import circulation, plane_coordinates
from comal_fast.game import PAPER_START, comal, ipo, kl_divergence, mirror_step, paper_game
from comal_fast.game.families import random_game

LIMITS = DiagnosticsConfig()
PROMPTS = 60


def steps(**columns: Sequence[float]) -> list[dict[str, Any]]:
    """Metrics rows of training; every column that is not given is harmless."""
    length = max(map(len, columns.values()), default=8)
    calm = {"loss": 1.0, "grad_norm": 5.0, "logps/chosen": -20.0, "logps/rejected": -20.0,
            "rewards/chosen": 0.1, "rewards/rejected": -0.1}  # fmt: skip
    rows = [{**calm, "step": i + 1} for i in range(length)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def trajectory(policies: np.ndarray, matrix: np.ndarray, interval: int = 1) -> list[History]:
    """What a run through these policies (T, n) would have measured, after each iteration.

    A prompt's win rate is the exact one plus noise that sums to zero: the interval is about ± 2 %.
    """
    noise = np.linspace(-0.1, 0.1, PROMPTS)
    log = np.log(policies)
    evaluated: dict[int, Evaluated] = {}
    histories = []
    for t, policy in enumerate(policies):
        reference = (t - 1) // interval * interval if t else 0
        evaluated[t] = Evaluated(
            t,
            reference,
            {s: policy @ matrix @ policies[s] + noise for s in range(t)},
            policy @ (log[t] - log[0]) + noise * 0.01,
            policy @ (log[t] - log[reference]) + noise * 0.01,
            1.0,
            {s: float(np.sqrt(np.mean((log[t] - log[s]) ** 2))) for s in range(t)},
        )
        history = History(
            t, steps(), 1.0, dict(evaluated), interval, 0.1,
            num_evaluations=len(policies) - 1, pull=0.1,
        )  # fmt: skip
        histories.append(history)
    return histories[1:]


def fired(histories: Sequence[History], name: str, **limits: Any) -> list[Finding | None]:
    return [CHECKS[name](h, LIMITS.model_copy(update=limits)) for h in histories]


def points(path: np.ndarray, gained: float = 0.0) -> History:
    """A run whose iterates lie at these complex numbers; each wins 50 % + `gained` over others."""
    noise = np.linspace(-0.1, 0.1, PROMPTS) + 0.5 + gained
    zeros = np.zeros(PROMPTS)
    evaluated = {
        t: Evaluated(
            t, 0, dict.fromkeys(range(t), noise), zeros, zeros, 1.0,
            {s: float(abs(path[t] - path[s])) for s in range(t)},
        )
        for t in range(len(path))
    }  # fmt: skip
    return History(len(path) - 1, [], 1.0, evaluated, 1, None)


def test_cycling_fires_without_regularisation_and_never_for_comal() -> None:
    game = paper_game()
    cyclic = ipo(game.matrix, PAPER_START, eta=1 / 0.3, outer=120)
    found = [f for f in fired(trajectory(cyclic.policies[::4], game.matrix), "cycling") if f]
    assert found, "iterative IPO goes round and round in the paper's game"
    for finding in found:
        assert finding.evidence["near"] < finding.evidence["via"]
        assert finding.evidence["distance"] <= 0.75 * finding.evidence["distance_gone"]
        assert finding.evidence["growth"] >= 1
    calm = comal(game.matrix, PAPER_START, eta=1 / 0.3, tau=0.1, outer=30, inner=50)
    assert not any(fired(trajectory(calm.policies, game.matrix), "cycling"))


@pytest.mark.parametrize(
    ("growth", "turns", "fires"),
    [(1.03, 1.1, True), (1.005, 1.1, True), (0.95, 1.1, False), (1.03, 0.7, False)],
)
def test_cycling_by_the_shape_of_the_path(growth: float, turns: float, fires: bool) -> None:
    """A circle that does not shrink fires; one that shrinks or is not closed does not."""
    angle = np.linspace(0, 2 * np.pi * turns, 16)
    history = points(growth ** np.arange(16) * np.exp(1j * angle))
    assert (CHECKS["cycling"](history, LIMITS) is not None) is fires


def test_cycling_needs_a_wide_circle_that_gains_nothing() -> None:
    angle = np.linspace(0, 2 * np.pi * 1.1, 16)
    circle = np.exp(1j * angle)
    assert CHECKS["cycling"](points(circle, gained=0.2), LIMITS) is None
    small = np.concatenate([[20.0 + 0j, 10.0, 5.0], circle])  # after a long way straight
    assert CHECKS["cycling"](points(small), LIMITS) is None
    widening = points(1.05 ** np.arange(16) * circle)
    assert CHECKS["cycling"](widening, LIMITS) is not None
    near = LIMITS.model_copy(update={"cycling_return": 0.1})
    assert CHECKS["cycling"](widening, near) is None


def test_cycling_by_win_rates_alone() -> None:
    """A spiral outwards in a game of three has a growing circulation; its mirror image shrinks."""
    matrix = 0.5 + 0.4 * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    angle = np.linspace(0, 4 * np.pi, 19)
    circle = np.stack([np.cos(angle + 2 * np.pi * k / 3) for k in range(3)], axis=1)
    radius = np.linspace(0.05, 0.6, 19)[:, None]
    for growing, step in ((True, 1), (False, -1)):
        policies = (1 + radius[::step] * circle) / 3
        if policies[1] @ matrix @ policies[0] < 0.5:
            policies = policies[:, [0, 2, 1]]
        history = trajectory(policies, matrix)[-1]
        lost = {t: dataclasses.replace(e, distances={}) for t, e in history.evaluated.items()}
        found = CHECKS["cycling"](dataclasses.replace(history, evaluated=lost), LIMITS)
        assert (found is not None) is growing
        if found:
            first, second = found.evidence["circulation"]
            assert second > first > 0 and "circles" in found.text


@given(st.integers(0, 2**32 - 1))
def test_circulation_is_zero_where_preferences_are_a_difference_of_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 0.5, 4)
    matrix = 0.5 + scores[:, None] - scores
    history = trajectory(rng.dirichlet(np.ones(4), 6) * 0.99 + 0.0025, matrix)[-1]
    flat = {
        t: dataclasses.replace(e, wins={s: np.array([w.mean()]) for s, w in e.wins.items()})
        for t, e in history.evaluated.items()
    }
    found = circulation(dataclasses.replace(history, evaluated=flat), list(range(6)))
    assert found == pytest.approx(0.0, abs=1e-12)


def test_plane_coordinates_keep_distances_in_a_plane() -> None:
    path = np.random.default_rng(0).normal(size=(9, 2)) @ [1, 1j]
    distances = np.abs(path[:, None] - path)
    found = plane_coordinates(distances) @ [1, 1j]
    assert np.abs(found[:, None] - found) == pytest.approx(distances, abs=1e-12)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"loss": [1.0, np.nan, 1.0]}, "loss is nan in step 2"),
        ({"grad_norm": [np.inf, 1.0]}, "grad_norm is inf in step 1"),
        ({"logps/rejected": [-1.0, -np.inf]}, "logps/rejected is -inf in step 2"),
        ({"grad_norm": [1.0] * 6 + [30.0] * 6}, "30 times"),
        ({"rewards/rejected": [-0.1] * 6 + [-99.0]}, "99 nats per token"),
    ],
)
def test_divergence(columns: dict[str, list[float]], words: str) -> None:
    found = CHECKS["divergence"](History(1, steps(**columns), 1.0, {}, 1, None), LIMITS)
    assert found and words in found.text


def test_divergence_takes_one_odd_batch_and_beta_for_what_they_are() -> None:
    check = CHECKS["divergence"]
    spike = steps(grad_norm=[5.0] * 6 + [500.0] + [5.0] * 6)
    assert check(History(1, spike, 1.0, {}, 1, None), LIMITS) is None
    rewards = steps(**{"rewards/rejected": [-0.1, -2.0]})  # β = 0.1: a log-ratio of −20
    assert check(History(1, rewards, 1.0, {}, 1, None), LIMITS) is None
    assert check(History(1, rewards, 1.0, {}, 1, None, reward_scale=0.1), LIMITS) is not None


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_degradation_is_silent_on_equal_policies(seed: int, earlier: int) -> None:
    """Symmetric noise about 50 % (each prompt's value with its mirror image) never fires."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(0, 1, (earlier, PROMPTS // 2))
    wins = {s: np.concatenate([v, 1 - v]) for s, v in enumerate(half)}
    now = Evaluated(earlier, 0, wins, np.zeros(PROMPTS), np.zeros(PROMPTS), 1.0)
    history = History(earlier, [], 1.0, {s: now for s in range(earlier + 1)}, 1, None, pull=0.0)
    assert CHECKS["degradation"](history, LIMITS) is None


def test_degradation_by_the_step_and_by_the_mixture() -> None:
    matrix = np.array([[0.5, 0.1, 0.1], [0.9, 0.5, 0.3], [0.9, 0.7, 0.5]])
    p = np.eye(3)[[0, 2, 1, 0]] * 0.97 + 0.01  # worst, best, middle, worst
    found = fired(trajectory(p, matrix), "degradation")
    assert found[0] is None
    assert found[1] and found[1].evidence["against"] == 1 and "backwards" in found[1].text
    assert found[2] and found[2].evidence["against"] == [0, 1, 2] and "mixture" in found[2].text
    for finding in found[1:]:
        assert finding and finding.evidence["interval"][1] < 0.5


def test_degradation_allows_a_step_that_the_reference_pulls_back() -> None:
    """Nearer to the reference a policy may lose to the one before; farther from it it may not."""
    matrix = np.array([[0.5, 0.4], [0.6, 0.5]])
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    history = trajectory(p, matrix, interval=12)[-1]
    lost = dataclasses.replace(history, pull=0.0)
    assert CHECKS["degradation"](lost, LIMITS) is not None
    assert CHECKS["degradation"](dataclasses.replace(history, pull=0.3), LIMITS) is None
    unknown = dataclasses.replace(history, pull=None)  # the step starts elsewhere
    assert CHECKS["degradation"](unknown, LIMITS) is None


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_an_exact_step_never_goes_backwards(seed: int, ratio: float) -> None:
    """P(π' ≻ π) + τ KL(π ‖ ref) − τ KL(π' ‖ ref) ≥ ½ for every game, reference and step."""
    rng = np.random.default_rng(seed)
    half = np.triu(rng.uniform(-0.5, 0.5, (4, 4)), 1)
    advantages = half - half.T
    log_policy, log_reference = np.log(rng.dirichlet(np.ones(4), 2))
    eta = 10 ** rng.uniform(-1, 1)
    after = mirror_step(log_policy, log_reference, advantages, eta, ratio * eta)
    gain = np.exp(after) @ advantages @ np.exp(log_policy)
    pull = kl_divergence(np.exp(log_policy), log_reference)
    pull -= kl_divergence(np.exp(after), log_reference)
    assert gain + ratio * eta * pull >= -1e-12


@given(st.integers(0, 2**32 - 1))
def test_iterative_ipo_never_loses_to_the_mixture_of_earlier_iterates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_game(4, int(rng.integers(1 << 30))).matrix
    found = ipo(matrix, rng.dirichlet(np.ones(4)), eta=10 ** rng.uniform(-1, 1), outer=12)
    for t in range(1, 13):
        assert found.policies[t] @ matrix @ found.policies[:t].mean(axis=0) >= 0.5 - 1e-12


def test_slow_convergence_tells_a_run_that_is_stuck_from_one_that_has_arrived() -> None:
    game = paper_game()
    start = np.repeat([PAPER_START], 7, axis=0)
    stuck, moving = (
        trajectory(p, game.matrix)
        for p in (start, comal(game.matrix, PAPER_START, eta=0.5, tau=0.1, outer=6).policies)
    )
    room = dict.fromkeys(range(1, 7), np.linspace(0.0, 0.02, PROMPTS))
    none = dict.fromkeys(range(1, 7), np.linspace(-0.01, 0.01, PROMPTS))

    def told(histories: list[History], variances: dict[int, np.ndarray]) -> list[bool]:
        known = [dataclasses.replace(h, win_rate_variances=variances) for h in histories]
        return [f is not None for f in fired(known, "slow_convergence")]

    assert told(stuck, room) == [False] * 2 + [True] * 4
    assert told(stuck, none) == told(stuck, {}) == [False] * 6
    assert told(moving, room)[:3] == [False] * 3


def test_unbiased_variance_has_the_variance_as_its_mean() -> None:
    """Over all draws of four responses of the paper's game, with a pull towards a reference."""
    matrix, ratio = paper_game().matrix, 0.1 * np.array([1.0, -2.0, 0.5])
    policy = np.array(PAPER_START)
    regularised = matrix @ policy - ratio
    expected = policy @ regularised**2 - (policy @ regularised) ** 2
    found = 0.0
    for drawn in itertools.product(range(3), repeat=4):
        own = list(drawn)
        margins = matrix[np.ix_(own, own)] - 0.5 - (ratio[own][:, None] - ratio[own])
        found += policy[own].prod() * unbiased_variance(margins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_reference_drift_counts_tokens() -> None:
    p = np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]])  # KL 4.45 nats
    (history,) = trajectory(p, np.full((3, 3), 0.5))
    assert fired([history], "reference_drift", max_kl_to_reference=4.6) == [None]
    assert fired([history], "reference_drift", max_kl_to_reference=4.0) != [None]
    longer = dataclasses.replace(history.evaluated[1], length=10.0)
    history = dataclasses.replace(history, evaluated={1: longer})
    assert fired([history], "reference_drift") == [None]


def test_inner_accuracy_is_silent_on_an_exact_inner_solve() -> None:
    game = paper_game()
    exact = comal(game.matrix, PAPER_START, eta=1 / 0.3, tau=0.1, outer=3, inner=400)
    assert not any(fired(trajectory(exact.policies, game.matrix), "inner_accuracy"))


@given(st.integers(0, 2**32 - 1))
def test_inner_accuracy_is_a_lower_bound_on_the_exact_gap(seed: int) -> None:
    """Gap of the regularised game: 2 (τ log E_ref exp(P(y ≻ π)/τ) − ½ + τ KL(π ‖ π_ref))."""
    game, tau = paper_game(), 0.1
    policies = np.random.default_rng(seed).dirichlet(np.ones(3), 4) * 0.97 + 0.01
    histories = trajectory(policies, game.matrix)
    for finding in fired(histories, "inner_accuracy", inner_c1=1e-9):
        if finding is None:
            continue
        t = finding.evidence["outer"]
        p, reference = policies[t], policies[t - 1]
        free = tau * np.log(reference @ np.exp(game.matrix @ p / tau))
        gap = 2 * (free - 0.5 + tau * p @ np.log(p / reference))
        assert finding.evidence["gap"] <= gap + 1e-9
    inside = dataclasses.replace(histories[0], ref_update_interval=2)  # not the end of a solve
    assert CHECKS["inner_accuracy"](inside, LIMITS.model_copy(update={"inner_c1": 1e-9})) is None
