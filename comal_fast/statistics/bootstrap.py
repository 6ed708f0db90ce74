"""Means of resampled prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from comal_fast.statistics.interval import Array

CHUNK = 1000  # resamples at a time: memory stays small at any n


def bootstrap_interval(
    values: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of (n,) values at this level: percentile bootstrap."""
    means = bootstrap_means(np.asarray(values, dtype=np.float64)[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(values: Array, resamples: int, seed: int) -> Array:
    """(resamples, k) means of (n, k) values, all columns over the same resampled prompts.

    So differences of columns are paired, and anything computed from a row has its interval.
    """
    return np.concatenate([w @ values for w in bootstrap_weights(len(values), resamples, seed)])


def bootstrap_weights(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """(≤ 1000, n) weights of the prompts in each resample, rows summing to 1."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        picks = generator.integers(0, n, (rows, n))
        flat = (picks + n * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * n).reshape(rows, n) / n
