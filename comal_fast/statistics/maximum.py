"""Bounds that hold for the best of several opponents, who is picked by looking at the data.

The largest of several noisy win rates is too high, most so among equals. So its lower end is the
largest of lower bounds that hold for all opponents at once. Its upper end is the largest of upper
bounds that hold for each opponent alone: the truly best opponent has one of them.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import t

from comal_fast.statistics.interval import Array
from comal_fast.statistics.means import rate_bounds

ONE_SIDED = 0.975  # of either bound, so that both together hold at 95 %


def best_opponent_bounds(rates: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """Return (m,) simultaneous lower and (m,) pointwise upper bounds of m mean rates.

    Args:
        rates: (n, m) in [0, 1]: the win rate of each of m opponents on each of n prompts.
        resamples: Draws behind the lower bounds' quantile.
        seed: Of the draws.
    """
    n, m = rates.shape
    if n < 2:
        return np.zeros(m), np.ones(m)
    mean, variance = rates.mean(axis=0), rates.var(axis=0, ddof=1)
    joint = _largest_quantile(rates, resamples, seed)
    low, _ = rate_bounds(mean, variance, n, joint)
    _, high = rate_bounds(mean, variance, n, float(t.ppf(ONE_SIDED, n - 1)))
    return low, high


def _largest_quantile(rates: Array, resamples: int, seed: int) -> float:
    """Return the quantile of the largest of m Student's t, correlated as the columns are."""
    n, m = rates.shape
    deviations = rates - rates.mean(axis=0)
    spread = np.sqrt((deviations**2).sum(axis=0))
    # a column without spread correlates with no other
    scaled = np.divide(deviations, spread, out=np.zeros_like(deviations), where=spread > 0)
    correlation = scaled.T @ scaled
    np.fill_diagonal(correlation, 1.0)
    generator = np.random.default_rng(seed)
    normal = generator.multivariate_normal(
        np.zeros(m), correlation, resamples, check_valid="ignore", method="eigh"
    )
    scale = np.sqrt(generator.chisquare(n - 1, resamples) / (n - 1))
    return float(np.quantile(normal.max(axis=1) / scale, ONE_SIDED))
