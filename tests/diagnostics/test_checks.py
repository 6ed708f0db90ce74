"""Each check on histories made by the exact solvers and by hand: what fires it, and what does not.

The exact game plays the part of a run: per iterate its win rates against the earlier ones, and the
distances between log-policies. Only the reading of a real run is left to test_runs.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics import CHECKS, Evaluated, Finding, History
from comal_fast.game import PAPER_START, comal, ipo, paper_game

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
        history = History(t, steps(), 1.0, dict(evaluated), interval, 0.1)
        histories.append(history)
    return histories[1:]


def fired(histories: Sequence[History], name: str, **limits: Any) -> list[Finding | None]:
    return [CHECKS[name](h, LIMITS.model_copy(update=limits)) for h in histories]


def test_cycling_fires_without_regularisation_and_never_for_comal() -> None:
    game = paper_game()
    cyclic = ipo(game.matrix, PAPER_START, eta=1 / 0.3, outer=120)
    wild = trajectory(cyclic.policies[::4], game.matrix)
    found = [f for f in fired(wild, "cycling") if f]
    assert found, "iterative IPO goes round and round in the paper's game"
    for finding in found:
        assert finding.evidence["distance"] <= 0.5 * finding.evidence["distance_gone"]
        assert finding.evidence["near"] < finding.evidence["via"]
    calm = comal(game.matrix, PAPER_START, eta=1 / 0.3, tau=0.1, outer=30, inner=50)
    assert not any(fired(trajectory(calm.policies, game.matrix), "cycling"))


def test_cycling_needs_a_return_that_wins_nothing() -> None:
    """There and back fires; there and on does not, nor a return to where the win rate rose."""
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.79, 0.11, 0.1]])
    matrix = np.full((3, 3), 0.5)
    assert fired(trajectory(p, matrix), "cycling")[-1] is not None
    assert fired(trajectory(p[[0, 1, 1]], matrix), "cycling")[-1] is None
    winning = trajectory(p, matrix)[-1]
    now = winning.evaluated[2]
    better = dataclasses.replace(now, wins={**now.wins, 0: now.wins[0] + 0.2})
    history = dataclasses.replace(winning, evaluated={**winning.evaluated, 2: better})
    assert CHECKS["cycling"](history, LIMITS) is None


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
    history = History(earlier, [], 1.0, {earlier: now}, 1, None, resamples=200)
    assert CHECKS["degradation"](history, LIMITS) is None


def test_degradation_names_the_worst() -> None:
    matrix = np.array([[0.5, 0.1, 0.1], [0.9, 0.5, 0.3], [0.9, 0.7, 0.5]])
    p = np.eye(3)[[0, 2, 1]] * 0.97 + 0.01  # worst, best, middle
    found = fired(trajectory(p, matrix), "degradation")
    assert found[0] is None
    assert found[1] and found[1].evidence["against"] == 1
    assert found[1].evidence["interval"][1] < 0.5


def test_slow_convergence_by_the_size_of_the_steps() -> None:
    game = paper_game()
    quick = comal(game.matrix, PAPER_START, eta=1 / 0.3, tau=0.1, outer=6, inner=50)
    slow = comal(game.matrix, PAPER_START, eta=1e5, tau=0.1, outer=6, inner=50)
    limits = {"slow_kl": 1e-3, "slow_win_rate": 1e-3}
    moving = trajectory(quick.policies, game.matrix)
    still = trajectory(slow.policies, game.matrix)
    assert [f is not None for f in fired(moving, "slow_convergence", **limits)][:3] == [False] * 3
    assert [f is not None for f in fired(still, "slow_convergence", **limits)] == [False] * 2 + [
        True
    ] * 4


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
