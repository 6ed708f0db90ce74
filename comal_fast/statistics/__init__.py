"""Intervals: of means over prompts, of win rates at equal length, of the best of several."""

from comal_fast.statistics.bootstrap import (
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_weights,
)
from comal_fast.statistics.equal_length import LENGTH_RESAMPLES, length_controlled
from comal_fast.statistics.interval import (
    DRAW,
    NOWHERE,
    Array,
    Interval,
    number,
    tie_share,
    to_interval,
)
from comal_fast.statistics.means import wilson

__all__ = [
    "DRAW",
    "LENGTH_RESAMPLES",
    "NOWHERE",
    "Array",
    "Interval",
    "bootstrap_interval",
    "bootstrap_mean",
    "bootstrap_means",
    "bootstrap_weights",
    "length_controlled",
    "number",
    "tie_share",
    "to_interval",
    "wilson",
]
