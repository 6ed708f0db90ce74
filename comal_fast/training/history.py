"""What stands in for the last iterate in the step of a configuration: see game/past_iterates.py."""

from __future__ import annotations

from comal_fast.config import Config
from comal_fast.config.algorithm import Regularised
from comal_fast.game.past_iterates import iterate_weights, step_multiplier


def past(config: Config, iteration: int) -> dict[int, float]:
    """Return {iterate: weight} of log X, the policy that the step from π_{iteration−1} starts from.

    The weights sum to 1, the last iterate comes first.
    """
    a = config.algorithm
    if not isinstance(a, Regularised):
        return {iteration - 1: 1.0}
    return iterate_weights(a.method, iteration, a.tau_eta_ratio, a.history, a.momentum)


def stretch(config: Config) -> float:
    """Return how many times as long the step 1/η from X is: 1, and 2 − τ/η for onpo."""
    algorithm = config.algorithm
    if isinstance(algorithm, Regularised):
        return step_multiplier(algorithm.method, algorithm.tau_eta_ratio)
    return 1.0


def step(config: Config) -> tuple[float, float]:
    """Return (η, τ/η) that a regularised loss is given: 1/η stretched, τ as it is."""
    algorithm = config.algorithm
    assert isinstance(algorithm, Regularised)
    longer = stretch(config)
    return algorithm.eta / longer, algorithm.tau_eta_ratio * longer
