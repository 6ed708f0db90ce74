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

LOPSIDED = 10.0  # prompts; below it, rare outcomes that a sample misses matter


def clustered_mean(values: Array, cluster: NDArray[np.int64], *, is_rate: bool = False) -> Interval:
    """Return the mean of all values with a 95 % interval over clusters.

    Student's with cluster-robust variance (a ratio of sums, as clusters differ in size); rates get
    `rate_interval`. The number of clusters is Kish's effective one, (Σ size)² / Σ size².

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
    half = float(t.ppf(0.975, effective - 1)) * math.sqrt(variance)
    if is_rate:
        return rate_interval(mean, half, effective)
    return Interval(mean, mean - half, mean + half)


def rate_interval(mean: float, half: float, units: float, level: float = 0.95) -> Interval:
    """Return Wilson's interval of a rate, for the number of draws that `half` stands for.

    Args:
        mean: The rate, in [0, 1].
        half: Half the width of the symmetric interval, Student's quantile included.
        units: Independent prompts behind it. Few and lopsided ones may all agree by chance, so a
            share of the largest variance that a rate can have, |2 mean − 1| · 10 / units², is
            mixed in; it decides at ten prompts and is nothing at a hundred.
        level: Of the interval.
    """
    largest = mean * (1 - mean)
    quantile = float(t.ppf((1 + level) / 2, max(units - 1, 1)))
    if largest <= 0:
        ratio = quantile**2 / units
    else:
        share = min(1.0, abs(2 * mean - 1) * LOPSIDED / units**2)
        guard = quantile**2 * largest / units
        ratio = max(half**2, (1 - share) * half**2 + share * guard) / largest
    middle = (mean + ratio / 2) / (1 + ratio)
    width = math.sqrt(ratio * largest + ratio**2 / 4) / (1 + ratio)
    return Interval(mean, max(0.0, middle - width), min(1.0, middle + width))
