"""Means with bootstrap intervals over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bootstrap_mean(values: Array, resamples: int, seed: int) -> dict[str, Any]:
    """`mean` and `ci95` [low, high] (percentile bootstrap) of (n,) values, one per prompt."""
    values = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(values, resamples, seed)
    return {"mean": float(values.mean()), "ci95": [low, high]}


def bootstrap_interval(
    values: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of (n,) values at this level: percentile bootstrap."""
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 1000):  # 1000 at a time: memory stays small at any n
        stop = min(start + 1000, resamples)
        picks = generator.integers(0, len(values), (stop - start, len(values)))
        means[start:stop] = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
