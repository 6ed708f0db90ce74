"""One check per failure: from what a run measured to the evidence that it fails, or None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics.history import Array, Evaluated, History
from comal_fast.statistics import bootstrap_interval

SMOOTH = 5  # optimiser steps whose median counts, so that one odd batch does not
FAR = 0.5  # an excursion counts from this share of the largest distance between two iterates


@dataclass(frozen=True)
class Finding:
    """One sentence for people, and the numbers behind it."""

    text: str
    evidence: dict[str, Any]


def divergence(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find NaN or Inf in training or evaluation, exploding gradient norms, or a huge log-ratio."""
    for row in history.steps:
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            if not np.isfinite(row.get(name, 0.0)):
                text = f"{name} is {row[name]} in step {row['step']}"
                return Finding(text, {"metric": name, "step": row["step"], "value": str(row[name])})
    if (now := history.current) and not np.isfinite([now.kl_to_initial, now.kl_to_reference]).all():
        text = "a held-out log-prob of this iterate is not finite"
        return Finding(text, {"metric": "eval/kl", "value": "nan"})
    if not history.steps:
        return None
    norms = _running_median([row["grad_norm"] for row in history.steps])
    growth = float(norms.max() / max(norms[0], 1e-30))
    sides = ("rewards/chosen", "rewards/rejected")  # per-response losses have one
    ratios = [abs(row[side]) for row in history.steps for side in sides if side in row]
    ratio = max(ratios, default=0.0) / history.reward_scale / history.trained_length
    evidence = {"grad_norm_growth": growth, "log_ratio_per_token": ratio}
    if growth > limits.max_grad_norm_growth:
        text = (
            f"the gradient norm grew from {norms[0]:.3g} to {norms.max():.3g}, {growth:.3g} times "
            f"(bound {limits.max_grad_norm_growth:g})"
        )
        return Finding(text, evidence)
    if ratio > limits.max_log_ratio:
        text = (
            f"the log-ratio reached {ratio:.3g} nats per token in training "
            f"(bound {limits.max_log_ratio:g})"
        )
        return Finding(text, evidence)
    return None


def degradation(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that the iterate loses to an earlier one.

    At 95 % over all earlier ones together (Bonferroni).
    """
    if (now := history.current) is None or not now.wins:
        return None
    level = 1 - 0.05 / len(now.wins)
    worst: tuple[float, int, float, float] | None = None
    for earlier, values in now.wins.items():
        low, high = _interval(values, history, level)
        if high < 0.5 and (worst is None or values.mean() < worst[0]):
            worst = (float(values.mean()), earlier, low, high)
    if worst is None:
        return None
    mean, earlier, low, high = worst
    text = (
        f"it loses to iterate {earlier}: win rate {mean:.1%}, "
        f"{100 * level:.4g}% interval [{low:.1%}, {high:.1%}]"
    )
    evidence = {"against": earlier, "win_rate": mean, "level": level, "interval": [low, high]}
    return Finding(text, evidence)


def cycling(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that the policy went from s far away to k and is back near s, not shown to beat s.

    Far: at least half the largest distance between any two iterates, so that jitter about a limit
    is no cycle. Back: within `cycling_return` of the distance s–k, and as much nearer to s than
    to k. The farthest k of the best s is the evidence.
    """
    if (now := history.current) is None:
        return None
    apart = {
        (s, t): d for t, e in history.evaluated.items() for s, d in e.distances.items() if s < t
    }
    largest = max(apart.values(), default=0.0)
    earlier = sorted(s for s in now.distances if s < now.iterate)
    best: tuple[float, int, int] | None = None
    for s, k in combinations(earlier, 2):
        gone, back = apart.get((s, k), 0.0), now.distances[s]
        near = limits.cycling_return * min(gone, now.distances[k])
        if gone >= FAR * largest > 0 and back <= near:
            low, _ = _interval(now.wins[s], history)
            if low <= 0.5 and (best is None or back / gone < best[0]):
                best = (back / gone, s, k)
    if best is None:
        return None
    share, s, k = best
    low, high = _interval(now.wins[s], history)
    rate = float(now.wins[s].mean())
    text = (
        f"it is back near iterate {s}, at {share:.0%} of the distance gone by iterate {k}, and "
        f"does not beat it: win rate {rate:.1%} [{low:.1%}, {high:.1%}]"
    )
    evidence = {
        "near": s,
        "via": k,
        "distance": now.distances[s],
        "distance_gone": apart[s, k],
        "win_rate": rate,
        "interval": [low, high],
    }
    return Finding(text, evidence)


def slow_convergence(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that in the window the policy neither moved nor is shown to have gained on where it was.

    It can't tell a step that is too small from a run that has arrived: both waste the iterations.
    """
    now = history.current
    then = history.evaluated.get(history.iteration - limits.slow_window)
    if now is None or then is None:
        return None
    window, wins = limits.slow_window, now.wins[then.iterate]
    moved = float(now.kl_to_initial.mean() - then.kl_to_initial.mean()) / window
    gained = float(wins.mean() - 0.5) / window
    low, high = _interval(wins, history)
    shown = low > 0.5 and gained >= limits.slow_win_rate
    if abs(moved) >= limits.slow_kl or shown:
        return None
    text = (
        f"since iterate {then.iterate}, KL to the initial policy changed by {moved:.3g} nats per "
        f"iteration (bound {limits.slow_kl:g}) and the win rate over that iterate is "
        f"{wins.mean():.1%} [{low:.1%}, {high:.1%}], {gained:.2%} per iteration (bound "
        f"{limits.slow_win_rate:.2%}): the steps are too small, or the run has arrived"
    )
    evidence = {"since": then.iterate, "kl_slope": moved, "win_rate_slope": gained,
                "interval": [low, high]}  # fmt: skip
    return Finding(text, evidence)


def reference_drift(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find KL to the reference, nats per token, above the bound with its whole interval."""
    if (now := history.current) is None or now.iterate == now.reference:
        return None
    low, high = (x / now.length for x in _interval(now.kl_to_reference, history))
    if low <= limits.max_kl_to_reference:
        return None
    drift = float(now.kl_to_reference.mean()) / now.length
    text = (
        f"KL to the reference (iterate {now.reference}) is {drift:.3g} nats per token "
        f"[{low:.3g}, {high:.3g}] (bound {limits.max_kl_to_reference:g})"
    )
    evidence = {"reference": now.reference, "kl_per_token": drift, "interval": [low, high]}
    return Finding(text, evidence)


def inner_accuracy(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that the inner problem's duality gap, bounded from below, exceeds c₁/(9T⁴).

    Only the last iterate of each outer step T solves the inner problem. The gap of π in J_τ(·, ·;
    π_ref) is 2 max_π' [P(π' ≻ π) − ½ − τ KL(π'‖π_ref) + τ KL(π‖π_ref)]; any π' bounds it from
    below. The earlier iterates whose KL to this reference is known stand for π', so the check can
    prove a solve inaccurate, never accurate. (Budget: COMAL, arXiv 2410.23223v2.)
    """
    now, interval = history.current, history.ref_update_interval
    if now is None or history.tau is None or history.iteration % interval:
        return None
    outer = history.iteration // interval
    budget = limits.inner_c1 / (9 * outer**4)
    bounds: dict[int, Array] = {}
    for s, wins in now.wins.items():
        kl = _kl_to(history.evaluated[s], now.reference)
        if kl is not None:
            bounds[s] = 2 * (0.5 - wins + history.tau * (now.kl_to_reference - kl))
    if not bounds:
        return None
    s = max(bounds, key=lambda other: float(bounds[other].mean()))
    level = 1 - 0.05 / len(bounds)
    low, high = _interval(bounds[s], history, level)
    if low <= budget:
        return None
    gap = float(bounds[s].mean())
    text = (
        f"the regularised game of outer step {outer} is left with a duality gap of at least "
        f"{gap:.3g} [{low:.3g}, {high:.3g}] (iterate {s} gains it), over the theory's "
        f"{limits.inner_c1:g}/(9·{outer}⁴) = {budget:.3g}"
    )
    evidence = {"outer": outer, "gap": gap, "interval": [low, high], "budget": budget, "by": s}
    return Finding(text, evidence)


CHECKS: dict[str, Callable[[History, DiagnosticsConfig], Finding | None]] = {
    "divergence": divergence,
    "degradation": degradation,
    "cycling": cycling,
    "slow_convergence": slow_convergence,
    "reference_drift": reference_drift,
    "inner_accuracy": inner_accuracy,
}
"""The checks, by the name of the option that says what is done about it."""


def _interval(values: Array, history: History, level: float = 0.95) -> tuple[float, float]:
    return bootstrap_interval(values, history.resamples, history.seed, level)


def _kl_to(iterate: Evaluated, reference: int) -> Array | None:
    """KL of an iterate to a given reference, where it was measured."""
    if iterate.iterate == reference:
        return np.zeros_like(iterate.kl_to_reference)
    if iterate.reference == reference:
        return iterate.kl_to_reference
    return iterate.kl_to_initial if reference == 0 else None


def _running_median(values: list[float]) -> Array:
    width = min(SMOOTH, len(values))
    return np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)
