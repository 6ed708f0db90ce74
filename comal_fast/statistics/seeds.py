"""Intervals over training seeds that hold out partly the same prompts.

A run of seed r has one value per held-out prompt, y_ri = μ + a_r + b_i + e_ri: a seed, a prompt and
what is left. The estimate of μ is the mean of the R runs' means m_r, and its variance is

    Var = S²/R + mean over r ≠ s of Cov(m_r, m_s),        S² = variance of the m_r, R − 1 degrees.

The first term alone is Student's. The second is what prompts that several runs hold out add; it
is estimated from the products of the runs' deviations on those prompts, and is 0 where none is
shared. The interval is the wider of two: Student's, and that of the whole variance with
Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from comal_fast.statistics.interval import NOWHERE, Array, Interval
from comal_fast.statistics.means import rate_bounds

Run = Mapping[Hashable, float]
"""The value of each held-out prompt of one run."""


@dataclass(frozen=True)
class SeedVariance:
    """A mean over seeds and the two parts of its variance."""

    mean: float
    seeds: float
    """Student's variance of the mean, from the spread of the runs' means."""
    degrees: float
    """Degrees of freedom of `seeds`."""
    shared: float
    """Variance that prompts held out by several runs add."""
    num_shared: int
    """Number of prompts that several runs hold out."""
    num_prompts: int
    """Number of different prompts."""


def variance_over_seeds(runs: Sequence[Run], minus: Sequence[Run] = ()) -> SeedVariance:
    """Estimate the mean over seeds, or a difference of two means, and its variance.

    Args:
        runs: One mapping per seed; two or more.
        minus: The runs of another setting, whose mean is subtracted. Its seeds are taken to be
            independent of those of `runs` (Welch); prompts that both hold out are paired.
    """
    groups = [list(group) for group in (runs, minus) if group]
    prompts = list(dict.fromkeys(prompt for group in groups for run in group for prompt in run))
    missing = float("nan")
    values = np.array([[r.get(p, missing) for p in prompts] for group in groups for r in group])
    held_out = np.isfinite(values)
    size = held_out.sum(axis=1)
    means = np.where(held_out, values, 0).sum(axis=1) / size
    # covariance of each two runs' means; the divisor makes up for the means that are subtracted
    deviations = np.where(held_out, values - means[:, None], 0)
    common = held_out.astype(float) @ held_out.T
    divisor = np.outer(size, size) - size[:, None] - size + common
    covariance = deviations @ deviations.T / np.maximum(divisor, 1)
    counts = np.array([len(group) for group in groups])
    owner = np.repeat(np.arange(len(groups)), counts)
    mean, shared, spread = 0.0, 0.0, np.zeros(len(groups))
    for number, sign in zip(range(len(groups)), (1, -1), strict=False):
        own, count = owner == number, counts[number]
        mean += sign * float(means[own].mean())
        spread[number] = means[own].var(ddof=1) / count
        block = covariance[np.ix_(own, own)]
        shared += float(block.sum() - block.trace()) / (count * (count - 1))
    if minus:
        shared -= 2 * float(covariance[np.ix_(owner == 0, owner == 1)].mean())
    seeds = float(spread.sum())
    degrees = seeds**2 / (spread**2 / (counts - 1)).sum() if seeds > 0 else (counts - 1).sum()
    num_shared = int((held_out.sum(axis=0) > 1).sum())
    return SeedVariance(mean, seeds, float(degrees), max(0.0, shared), num_shared, len(prompts))


def half_width(
    seeds: Array | float, degrees: float, shared: float, num_shared: float, level: float = 0.95
) -> Array:
    """Return half the width of the interval, from the parts of a `SeedVariance`."""
    quantile, seeds = (1 + level) / 2, np.asarray(seeds, dtype=np.float64)
    total = seeds + shared
    spread = seeds**2 / degrees + shared**2 / max(num_shared - 1, 1)
    both = np.divide(total**2, spread, out=np.full_like(seeds, degrees), where=spread > 0)
    student = t.ppf(quantile, degrees) * np.sqrt(seeds)
    return np.maximum(student, t.ppf(quantile, both) * np.sqrt(total))


def interval_over_seeds(
    runs: Sequence[Run], minus: Sequence[Run] = (), level: float = 0.95, *, is_rate: bool = False
) -> Interval:
    """Return the mean over seeds, or a difference of two such means, with its interval.

    Args:
        runs, minus: As in `variance_over_seeds`.
        level: Of the interval.
        is_rate: The values lie in [0, 1], and so does the interval.

    Returns:
        The interval; NaN where a value is not finite.
    """
    if not all(np.isfinite(list(run.values())).all() for run in (*runs, *minus)):
        return NOWHERE
    found = variance_over_seeds(runs, minus)
    half = float(half_width(found.seeds, found.degrees, found.shared, found.num_shared, level))
    if is_rate:
        units = max(found.num_prompts, 2)
        quantile = float(t.ppf((1 + level) / 2, units - 1))
        variance = units * (half / quantile) ** 2  # of one prompt, if prompts were all there is
        low, high = rate_bounds(np.array(found.mean), np.array(variance), units, quantile)
        return Interval(found.mean, float(low), float(high))
    return Interval(found.mean, found.mean - half, found.mean + half)
