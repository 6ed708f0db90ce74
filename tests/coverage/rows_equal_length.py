"""Rows of the win rate at equal length."""

from __future__ import annotations

from scipy.special import logit

from comal_fast.statistics import Interval, length_controlled, to_interval
from coverage_suite import Drawn, Row
from draws import RATES, Generator, draw_lengths, win_probability

SIZES = (10, 56, 256)
LOPSIDED = "as the win rate's: a lattice, and the guard against losses that were not seen"
SHAPE = "the regression has the wrong shape, which no interval makes up for"


def _row(kind: str, n: int, truth: float, effect: float, shift: float, shape: str = "tanh") -> Row:
    def draw(generator: Generator) -> Drawn | None:
        extra = draw_lengths(generator, n, shift)
        likely = win_probability(float(logit(truth)), effect, extra, shape)
        found: Interval | None = to_interval(
            length_controlled(RATES[kind](generator, likely), extra)
        )
        return found and (found.low, found.high, truth)

    data = f"{kind}, length effect {effect:g}, {shift:g} spreads longer"
    bounds, why = None, ""
    if shape != "tanh":
        data += f", another shape ({shape})"
        bounds, why = (0.85, 1.0), SHAPE
    elif n == 56 and truth > 0.9:
        bounds, why = (0.93, 0.99), LOPSIDED
    return Row("at equal length", data, n, truth, draw, bounds, why)


ROWS = [
    *(
        _row(kind, n, truth, effect, shift)
        for kind in ("0/1", "soft", "16 verdicts a prompt")
        for n in SIZES
        for truth in (0.5, 0.8, 0.95)
        for effect, shift in ((0.0, 0.0), (1.0, 0.7))
    ),
    *(
        _row("soft", n, 0.8, effect, shift, shape)
        for n in (56, 256)
        for shape in ("linear", "steep")
        for effect in (1.0, -1.0)
        for shift in (0.7, 1.0)
    ),
]
