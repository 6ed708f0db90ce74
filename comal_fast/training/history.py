"""What stands in for the last iterate π_t in the step of a solver that looks farther back.

Every method below is the mirror step with a geometric mean of iterates in π_t's place,
log X = Σ_j w_j log π_{t−j} with Σ w_j = 1, and a step 1/η that is `stretch` times as long; only
cached log-probs change. With s = τ/η and r(y) = P(y ≻ π_t) − ½ − τ log(X/π_ref)(y), one trains

    log π_{t+1} = log X + stretch · r/η + const.

- onpo (arXiv 2502.16852): optimistic mirror descent keeps a base π̂ beside what it plays,
  π̂_{t+1} ∝ π̂_t^{1−s} π_ref^s exp(P(y ≻ π_t)/η), and π_{t+1} is the same step again from π̂_{t+1}
  with the win rates just seen. Both steps in one: X = π̂_t, stretch 2 − s. Eliminating the win
  rates, log π̂_{t+1} = (log π_{t+1} + (1 − s) log π̂_t)/(2 − s): the base is a mean of past
  iterates, whose weights fall by (1 − s)/(2 − s).
- mnpo (arXiv 2509.23102): equal weights. Win rates are those against π_t, as in its authors' loss.
- apo (arXiv 2410.06293): Nesterov's extrapolation, X = π_t (π_t/π_{t−1})^α.
"""

from __future__ import annotations

from comal_fast.config import Config
from comal_fast.config.algorithm import Regularised


def past(config: Config, iteration: int) -> dict[int, float]:
    """{iterate: weight} of log X for the step from π_{iteration−1}, the last iterate first.

    The weights sum to 1; iterates before `algorithm.history`, or before π_0, give theirs to the
    oldest one that is kept.
    """
    algorithm, last = config.algorithm, iteration - 1
    if not isinstance(algorithm, Regularised) or algorithm.method == "mirror" or last == 0:
        return {last: 1.0}
    if algorithm.method == "apo":
        return {last: 1 + algorithm.momentum, last - 1: -algorithm.momentum}
    kept = min(algorithm.history, iteration)
    if algorithm.method == "mnpo":
        return {last - j: 1 / kept for j in range(kept)}
    ratio = (1 - algorithm.tau_eta_ratio) / (2 - algorithm.tau_eta_ratio)
    weights = {last - j: (1 - ratio) * ratio**j for j in range(kept - 1)}
    return weights | {last - kept + 1: ratio ** (kept - 1)}


def stretch(config: Config) -> float:
    """How many times as long the step 1/η is, from X: 1, and 2 − τ/η for onpo."""
    algorithm = config.algorithm
    if isinstance(algorithm, Regularised) and algorithm.method == "onpo":
        return 2 - algorithm.tau_eta_ratio
    return 1.0


def step(config: Config) -> tuple[float, float]:
    """(η, τ/η) that a regularised loss is given: 1/η stretched, τ as it is."""
    algorithm = config.algorithm
    assert isinstance(algorithm, Regularised)
    longer = stretch(config)
    return algorithm.eta / longer, algorithm.tau_eta_ratio * longer
