"""How often 95 % intervals hold the truth: rows of simulations, and what is asked of each.

A module tests/coverage/rows_*.py exports `ROWS`, a list of `Row`. A row draws a data set whose
truth is known and calls the code that a verb calls for its interval. `make coverage` runs all.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FEW = 50  # prompts, below which an interval may be conservative
ROWS_FOLDER = Path(__file__).parents[1] / "coverage"

Drawn = tuple[float, float, float]  # low, high, truth


@dataclass(frozen=True)
class Row:
    """One interval on one kind of data."""

    interval: str
    """The printed number that the interval belongs to, such as "win rate"."""
    data: str
    """How the data are drawn, such as "0/1 outcomes, 4 samples a prompt"."""
    n: int
    """Prompts of a data set."""
    truth: float
    """The value that the interval should hold; `draw` returns it too."""
    draw: Callable[[np.random.Generator], Drawn | None]
    """Draw one data set and return (low, high, truth); None where the verb prints no interval."""
    bounds: tuple[float, float] | None = None
    """Least and most coverage; by default .93 to .975, and .92 to 1 below 50 prompts."""
    why: str = ""
    """Why the row's bounds are its own."""

    @property
    def name(self) -> str:
        """Return a name that no other row has."""
        return f"{self.interval}, {self.data}, truth {self.truth:g}, n = {self.n}"

    @property
    def limits(self) -> tuple[float, float]:
        """Return the least and the most coverage that are asked for."""
        return self.bounds or ((0.92, 1.0) if self.n < FEW else (0.93, 0.975))


@dataclass(frozen=True)
class Coverage:
    """What the replications of a row show."""

    row: Row
    replications: int
    answered: int
    """Replications in which the verb printed an interval."""
    covered: int
    below: int
    """Replications whose interval lies wholly below the truth."""
    width: float
    """Mean width of the intervals."""

    @property
    def share(self) -> float:
        """Return the share of the printed intervals that hold the truth; NaN where none was."""
        return self.covered / self.answered if self.answered else math.nan

    @property
    def error(self) -> float:
        """Return the standard error of `share`, as if the coverage were .95."""
        return math.sqrt(0.95 * 0.05 / self.answered) if self.answered else math.nan

    def is_within(self, errors: float) -> bool:
        """Return whether `share` is within the row's bounds, widened by this many errors."""
        least, most = self.row.limits
        slack = errors * self.error
        return self.answered == 0 or least - slack <= self.share <= most + slack

    def to_json(self) -> dict[str, Any]:
        """Return the row and its coverage as plain containers."""
        return {
            "interval": self.row.interval,
            "data": self.row.data,
            "n": self.row.n,
            "truth": self.row.truth,
            "bounds": list(self.row.limits),
            "why": self.row.why,
            "replications": self.replications,
            "answered": self.answered,
            "coverage": self.share if self.answered else None,
            "error": self.error if self.answered else None,
            "wholly_below": self.below / self.answered if self.answered else None,
            "width": self.width if self.answered else None,
        }


def load_rows() -> list[Row]:
    """Return the rows of every tests/coverage/rows_*.py, in the order of the files' names.

    Raises:
        ValueError: two rows have one name.
    """
    rows: list[Row] = []
    for path in sorted(ROWS_FOLDER.glob("rows_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        rows += module.ROWS
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two rows are called {twice!r}")
    return rows


def measure_coverage(row: Row, replications: int, seed: int) -> Coverage:
    """Return the coverage of a row; its random numbers do not depend on the other rows."""
    generator = np.random.default_rng([seed, zlib.crc32(row.name.encode())])
    drawn = [row.draw(generator) for _ in range(replications)]
    found = np.array([each for each in drawn if each is not None]).reshape(-1, 3)
    low, high, truth = found.T
    slack = 1e-9  # rounding of an end that is the truth, such as 0 or ½
    return Coverage(
        row,
        replications,
        len(found),
        int(np.sum((low <= truth + slack) & (truth - slack <= high))),
        int(np.sum(high < truth - slack)),
        float(np.mean(high - low)) if len(found) else math.nan,
    )


def select_rows(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """Return the rows whose name holds every word."""
    return [row for row in rows if all(word in row.name for word in words)]
