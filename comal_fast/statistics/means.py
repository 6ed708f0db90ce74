"""Intervals of means over prompts."""

from __future__ import annotations

import numpy as np

from comal_fast.statistics.interval import Array


def wilson(share: Array, n: Array) -> tuple[Array, Array]:
    """(low, high) of 95 % Wilson intervals of shares of n (Wilson 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half
