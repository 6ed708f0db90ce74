"""slow_convergence: a run that stands still though it could gain.

A run that has arrived stands still too, but it could not gain: at equilibrium no response beats the
policy more than another, so r(y) = P(y ≻ π) − τ log(π/π_ref)(y) is the same for all y that it
samples. The judged samples of a prompt tell the two apart: the variance of r has an unbiased
estimate, whose mean over prompts is 0 for a run that has arrived.
"""

from __future__ import annotations

import math

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics.evidence import Finding, bound_mean, bound_rate, level_of
from comal_fast.diagnostics.history import Array, History


def slow_convergence(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that in the window the policy neither moved nor gained, and that it could have gained.

    It could: the win rates of its own samples are shown to differ, by more than the bound of the
    window, at a level that holds for the whole run.
    """
    now, window = history.current, limits.slow_window
    then = history.iteration - window
    if now is None or then not in now.wins or then not in now.distances:
        return None
    moved = (now.distances[then] / window) ** 2 / 2  # KL of a step, where all go the same way
    found = bound_rate(now.wins[then], 0.95)
    gained = (found.mean - 0.5) / window
    if moved >= limits.slow_kl or (found.low > 0.5 and gained >= limits.slow_win_rate):
        return None
    known = [history.win_rate_variances.get(t) for t in range(then + 1, history.iteration + 1)]
    variances = np.concatenate([values for values in known if values is not None] or [np.zeros(0)])
    room = bound_mean(variances, level_of(history))
    if not room.low > (window * limits.slow_win_rate) ** 2:
        return None
    spread, least = math.sqrt(max(room.mean, 0.0)), math.sqrt(room.low)
    text = (
        f"since iterate {then} the policy moved by {moved:.3g} nats per iteration "
        f"(bound {limits.slow_kl:g}) and its win rate over that iterate is {found.mean:.1%} "
        f"[{found.low:.1%}, {found.high:.1%}]. It has not arrived at an equilibrium of the judge: "
        f"the win rates of its own responses differ by {spread:.1%}, at least by {least:.1%}. Its "
        f"steps are too small, or its pairs and labels are those of another game"
    )
    evidence = {
        "since": then,
        "kl_slope": moved,
        "win_rate_slope": gained,
        "interval": [found.low, found.high],
        "spread": spread,
        "spread_low": least,
    }
    return Finding(text, evidence)


def unbiased_variance(margins: Array) -> Array:
    """Estimate the variance of r(y) over a policy's responses y, without bias.

    With m_ij = r_ij − ½ for responses i and j, whose mean over j is r(y_i) less its mean, the mean
    of m_ij m_ik over distinct i, j, k has the expectation Var r(y).

    Args:
        margins: (..., K, K) antisymmetric, K ≥ 3: P(y_i ≻ y_j) − ½ − τ (log ρ(y_i) − log ρ(y_j)) of
            K independent responses, ρ = π/π_ref.

    Returns:
        (...) estimates, which may be negative.
    """
    size = margins.shape[-1]
    products = margins.sum(axis=-1) ** 2 - (margins**2).sum(axis=-1)
    variance: Array = products.sum(axis=-1) / (size * (size - 1) * (size - 2))
    return variance
