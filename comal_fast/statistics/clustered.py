"""Intervals of means whose values come in clusters: several pairs of one prompt, say.

The values of one prompt depend on each other, so prompts are the units: the mean of all values is
a ratio of two sums over prompts, and its variance is that of the prompts' deviations from it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from comal_fast.statistics.interval import Array, Interval
from comal_fast.statistics.means import rate_bounds


def clustered_mean(values: Array, cluster: NDArray[np.int64], *, is_rate: bool = False) -> Interval:
    """Return the mean of all values with a 95 % interval over clusters.

    Student's with cluster-robust variance (a ratio of sums, as clusters differ in size); rates get
    Wilson's (`rate_bounds`). The number of clusters is Kish's effective one, (Σ size)² / Σ size².

    Args:
        values: (n,).
        cluster: (n,) number of each value's cluster, from 0.
        is_rate: The values lie in [0, 1], and so does the interval.

    Returns:
        The interval, with NaN ends (of a rate: 0 and 1) where there are fewer than two clusters.
    """
    size = np.bincount(cluster)
    mean = float(values.mean())
    effective = len(values) ** 2 / float((size**2).sum())
    if effective <= 1:
        return Interval(mean, *((0.0, 1.0) if is_rate else (math.nan, math.nan)))
    deviations = np.bincount(cluster, values - mean)
    variance = float((deviations**2).sum()) / len(values) ** 2 * effective / (effective - 1)
    quantile = float(t.ppf(0.975, effective - 1))
    if is_rate:
        low, high = rate_bounds(np.array(mean), np.array(variance * effective), effective, quantile)
        return Interval(mean, float(low), float(high))
    half = quantile * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)
