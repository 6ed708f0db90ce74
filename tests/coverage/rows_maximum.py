"""Rows of exploitability: the best of several opponents, picked by looking."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from comal_fast.compare.tournament import standings
from coverage_suite import Drawn, Row
from draws import Generator

SIZES = (10, 56, 256)
RESAMPLES = 1000
BOUNDARY = "conservative by design: a bound for the best of several, and at 0 no upper end errs"


def _row(data: str, rates: tuple[float, ...], n: int, is_hard: bool) -> Row:
    """The first entrant loses to the others at these rates; responses are shared by all pairs."""
    truth = max(0.0, max(rates) - 0.5)

    def draw(generator: Generator) -> Drawn:
        size = len(rates) + 1
        # an entrant's response is good or bad on a prompt, against whichever opponent
        quality = generator.normal(0, 1, (size, n))
        spread = np.sqrt(2)
        wins = np.full((size, size, n), 0.5)
        for i, rate in enumerate(rates, 1):
            uniform = ndtr((quality[i] - quality[0]) / spread)
            wins[i, 0] = uniform < rate if is_hard else _soft(uniform, rate)
            wins[0, i] = 1 - wins[i, 0]
        found = standings([str(i) for i in range(size)], wins, RESAMPLES, 0)[0]
        return *found.interval, truth

    kind = "0/1" if is_hard else "soft"
    return Row("exploitability", f"{kind}, {data}", n, truth, draw, (0.93, 1.0), BOUNDARY)


def _soft(uniform: np.ndarray, rate: float) -> np.ndarray:
    """Return probabilities 1 − (1 − rate) · 2u, or their mirror image, of mean `rate`."""
    low = min(rate, 1 - rate)
    return 2 * low * uniform if rate <= 0.5 else 1 - 2 * low * uniform


ROWS = [
    _row(data, rates, n, is_hard)
    for is_hard in (True, False)
    for n in SIZES
    for data, rates in (
        ("4 equal entrants", (0.5,) * 3),
        ("9 equal entrants", (0.5,) * 8),
        ("one opponent", (0.6,)),
        ("one better of 4", (0.7, 0.5, 0.5)),
        ("9 unequal entrants", (0.8, 0.75, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3)),
        ("4 that all beat it by as much", (0.65,) * 4),
    )
]
