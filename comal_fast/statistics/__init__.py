"""Intervals: of means over prompts, of win rates at equal length, of the best of several."""

from comal_fast.statistics.bootstrap import (
    bootstrap_interval,
    bootstrap_means,
    bootstrap_weights,
)
from comal_fast.statistics.equal_length import length_controlled
from comal_fast.statistics.interval import (
    DRAW,
    NOWHERE,
    Array,
    Interval,
    number,
    tie_share,
    to_interval,
)
from comal_fast.statistics.maximum import best_opponent_bounds
from comal_fast.statistics.means import (
    LEAST_PROMPTS,
    difference_interval,
    mean_interval,
    rate_bounds,
    rate_interval,
    to_json,
)

__all__ = [
    "DRAW",
    "LEAST_PROMPTS",
    "NOWHERE",
    "Array",
    "Interval",
    "best_opponent_bounds",
    "bootstrap_interval",
    "bootstrap_means",
    "bootstrap_weights",
    "difference_interval",
    "length_controlled",
    "mean_interval",
    "number",
    "rate_bounds",
    "rate_interval",
    "tie_share",
    "to_interval",
    "to_json",
]
