"""Intervals of means over prompts: of rates in [0, 1], of their differences, and of other means.

Every value belongs to one prompt, and prompts are independent. So several responses to a prompt
are averaged first. docs/intervals.md says how often these intervals hold the truth.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import t

from comal_fast.statistics.interval import Array, Interval

LEAST_PROMPTS = 10
"""Prompts from which on the simulations show that the intervals cover; verdicts ask for as many."""
PSEUDO = 0.1  # weight of the imagined win and the imagined loss in a rate's variance


def rate_interval(values: Array, level: float = 0.95) -> Interval:
    """Return the mean of rates with Wilson's interval for the number of prompts they are worth.

    Args:
        values: (n,) in [0, 1], one per prompt: win rates, accuracies.
        level: Of the interval.

    Returns:
        The interval, which lies in [0, 1]; all of [0, 1] for one prompt.
    """
    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, 0.0, 1.0)
    quantile = float(t.ppf((1 + level) / 2, n - 1))
    low, high = rate_bounds(np.array(mean), np.array(values.var(ddof=1)), n, quantile)
    return Interval(mean, float(low), float(high))


def difference_interval(ours: Array, theirs: Array, level: float = 0.95) -> Interval:
    """Return the mean difference of two (n,) rates of the same prompts, with its interval.

    A difference lies in [−1, 1], so half of it and ½ is a rate.
    """
    half = rate_interval((np.asarray(ours) - np.asarray(theirs) + 1) / 2, level)
    return Interval(2 * half.mean - 1, 2 * half.low - 1, 2 * half.high - 1)


def rate_bounds(
    mean: Array, variance: Array, n: float, quantile: float | Array
) -> tuple[Array, Array]:
    """Return Wilson's bounds (low, high) of means of rates that vary between prompts.

    Wilson (1927) inverts the score test of a share of n draws, whose variance is m (1 − m). The
    rates of n prompts vary by s², so they are worth n m (1 − m) / s² draws. Few or lopsided prompts
    may agree by chance, so s² counts a win and a loss that were not seen, each of weight `PSEUDO`.

    Args:
        mean: Mean rates m, of any shape.
        variance: Variances s² of one prompt's rate, unbiased, of the same shape.
        n: Number of prompts, 2 or more.
        quantile: Of Student's distribution with n − 1 degrees, 2.06 for a 95 % interval of 25.
    """
    draws = mean * (1 - mean)  # the variance of a draw: no rate varies more
    unseen = PSEUDO * (mean**2 + (1 - mean) ** 2)
    guarded = ((n - 1) * variance + unseen) / (n - 1 + 2 * PSEUDO)
    spread = np.maximum(variance, np.minimum(guarded, draws))
    share = np.divide(spread, draws, out=np.ones_like(draws), where=draws > 0)
    ratio = quantile**2 * share / n
    middle = (mean + ratio / 2) / (1 + ratio)
    half = np.sqrt(ratio * draws + ratio**2 / 4) / (1 + ratio)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def mean_interval(values: Array, level: float = 0.95) -> Interval:
    """Return the mean of values that may be skewed, with the outer ends of two intervals.

    Student's ends too low for a skewed quantity such as a KL. Hall's cubic transformation of
    Student's t (1992) takes the skewness out, but errs on heavy tails. Each end is the outer one.

    Args:
        values: (n,) of any range, one per prompt: KLs, margins.
        level: Of the interval.

    Returns:
        The interval; its ends are NaN for one prompt.
    """
    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    deviations = values - mean
    spread = math.sqrt(float((deviations**2).mean()))
    if spread == 0:
        return Interval(mean, mean, mean)
    skewness = float(((deviations / spread) ** 3).mean())
    quantile = float(t.ppf((1 + level) / 2, n - 1))
    error = spread / math.sqrt(n - 1)
    below = max(quantile, _untransform(quantile, skewness / math.sqrt(n)))
    above = min(-quantile, _untransform(-quantile, skewness / math.sqrt(n)))
    return Interval(mean, mean - error * below, mean - error * above)


def _untransform(value: float, skew: float) -> float:
    """Return the t for which t + a t² + a² t³ / 3 + skew / 6 is `value`, with a = skew / 3."""
    rest, a = value - skew / 6, skew / 3
    return float(np.cbrt(1 + 3 * a * rest) - 1) / a if abs(a) > 1e-9 else rest


def to_json(interval: Interval) -> dict[str, Any]:
    """Return {`mean`, `ci95` [low, high]}, as `to_interval` reads it; `ci95` null if unknown."""
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return {"mean": interval.mean, "ci95": [interval.low, interval.high] if known else None}
