"""One check per failure: from what a run measured to the evidence that it fails, or None."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics.cycling import cycling
from comal_fast.diagnostics.degradation import degradation
from comal_fast.diagnostics.evidence import (
    Finding,
    allow_for_undrawn,
    bound_mean,
    bound_regularised,
    level_of,
)
from comal_fast.diagnostics.history import Array, History
from comal_fast.diagnostics.slow_convergence import slow_convergence

SMOOTH = 5  # optimiser steps whose median counts, so that one odd batch does not


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


def reference_drift(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find KL to the reference, nats per token, above the bound.

    It is shown at a level that holds for the whole run.
    """
    if (now := history.current) is None or now.iterate == now.reference:
        return None
    level = level_of(history)
    found = bound_mean(now.kl_to_reference, level)
    low = allow_for_undrawn(found.low, len(now.kl_to_reference), level)
    drift, low, high = (x / now.length for x in (found.mean, low, found.high))
    if not low > limits.max_kl_to_reference:
        return None
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
    prove a solve inaccurate, never accurate, at a level that holds for the whole run. (Budget:
    COMAL, arXiv 2410.23223v2.)
    """
    now, interval = history.current, history.ref_update_interval
    if now is None or history.tau is None or history.iteration % interval:
        return None
    outer = history.iteration // interval
    budget = limits.inner_c1 / (9 * outer**4)
    differences = {
        s: history.tau * (now.kl_to_reference - kl)
        for s in now.wins
        if (kl := history.kl_to(s, now.reference)) is not None
    }
    if not differences:
        return None
    s = max(differences, key=lambda t: float((differences[t] - now.wins[t]).mean()))
    level = level_of(history, len(differences))
    found = bound_regularised(1 - now.wins[s], differences[s], level)  # iterate s against this one
    gap, low, high = (2 * x - 1 for x in (found.mean, found.low, found.high))
    if not low > budget:
        return None
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


def _running_median(values: list[float]) -> Array:
    width = min(SMOOTH, len(values))
    return np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)
