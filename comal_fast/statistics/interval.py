"""An estimate with its 95 % interval, and how JSON holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAW = 1e-9  # a comparison within this of ½ is a tie


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; NaN where a number is missing."""

    mean: float
    low: float
    high: float

    def complement(self) -> Interval:
        """The other side's win rate."""
        return Interval(1 - self.mean, 1 - self.high, 1 - self.low)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return self.low > value or self.high < value


NOWHERE = Interval(math.nan, math.nan, math.nan)


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is not a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan


def to_interval(value: Any) -> Interval | None:
    """{`mean`, `ci95` [low, high]} as an Interval; None without a finite mean."""
    if not isinstance(value, dict) or not math.isfinite(mean := number(value.get("mean"))):
        return None
    ends = value.get("ci95")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return Interval(mean, number(low), number(high))


def tie_share(matrix: np.ndarray) -> float:
    """Share of the comparisons at P = ½."""
    return float(np.mean(np.abs(matrix - 0.5) <= DRAW))
