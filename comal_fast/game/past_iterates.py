"""Which earlier iterates stand in for the last one in the step of a method that looks further back.

Every method is the mirror step with a geometric mean of iterates in π_t's place,
log X = Σ_j w_j log π_{t−j} with Σ w_j = 1, and a step 1/η that may be longer. With s = τ/η and
r(y) = P(y ≻ π_t) − ½ − τ log(X/π_ref)(y) the step is

    log π_{t+1} = log X + multiplier · r/η + const.

- onpo (arXiv 2502.16852): optimistic mirror descent keeps a base π̂ beside what it plays,
  π̂_{t+1} ∝ π̂_t^{1−s} π_ref^s exp(P(y ≻ π_t)/η), and π_{t+1} is the same step again from π̂_{t+1}
  with the win rates just seen. Both steps in one: X = π̂_t, multiplier 2 − s. Without the win rates,
  log π̂_{t+1} = (log π_{t+1} + (1 − s) log π̂_t)/(2 − s): the base is a mean of past iterates, whose
  weights fall by (1 − s)/(2 − s).
- mnpo (arXiv 2509.23102): equal weights. Win rates are those against π_t, as in its authors' loss.
- heavy_ball (Polyak 1964): X = π_t (π_t/π_{t−1})^α, with win rates against π_t itself. APO (arXiv
  2410.06293) samples from the extrapolated policy instead, as Nesterov does, which takes a model of
  its own; `comal-fast game --algorithm apo` is that.
"""

from __future__ import annotations


def iterate_weights(
    method: str, iteration: int, tau_eta_ratio: float, history: int, momentum: float
) -> dict[int, float]:
    """Return {iterate: weight} of log X for the step from π_{iteration−1}, the last iterate first.

    The weights sum to 1. Iterates before `history`, or before π_0, give theirs to the oldest one
    that is kept.
    """
    previous = iteration - 1
    if method == "mirror" or previous == 0:
        return {previous: 1.0}
    if method == "heavy_ball":
        return {previous: 1 + momentum, previous - 1: -momentum}
    kept = min(history, iteration)
    if method == "mnpo":
        return {previous - j: 1 / kept for j in range(kept)}
    ratio = (1 - tau_eta_ratio) / (2 - tau_eta_ratio)
    weights = {previous - j: (1 - ratio) * ratio**j for j in range(kept - 1)}
    return weights | {previous - kept + 1: ratio ** (kept - 1)}


def step_multiplier(method: str, tau_eta_ratio: float) -> float:
    """Return how many times as long the step 1/η from X is: 2 − τ/η for onpo, else 1."""
    return 2 - tau_eta_ratio if method == "onpo" else 1.0
