"""Rows of the win rate at equal length."""

from __future__ import annotations

from scipy.special import logit

from comal_fast.statistics import Interval, length_controlled, to_interval
from coverage_suite import Drawn, Row
from draws import RATES, Generator, Rates, draw_lengths, win_probability

SIZES = (10, 56, 256)
LOPSIDED = "as the win rate's: a lattice, and the guard against losses that were not seen"


def _row(kind: str, draw_rates: Rates, n: int, truth: float, effect: float, shift: float) -> Row:
    def draw(generator: Generator) -> Drawn | None:
        extra = draw_lengths(generator, n, shift)
        wins = draw_rates(generator, win_probability(float(logit(truth)), effect, extra))
        found: Interval | None = to_interval(length_controlled(wins, extra))
        return found and (found.low, found.high, truth)

    data = f"{kind}, length effect {effect:g}, {shift:g} spreads longer"
    lopsided = n == 56 and truth > 0.9
    bounds, why = ((0.93, 0.99), LOPSIDED) if lopsided else (None, "")
    return Row("at equal length", data, n, truth, draw, bounds, why)


ROWS = [
    _row(kind, RATES[kind], n, truth, effect, shift)
    for kind in ("0/1", "soft", "16 verdicts a prompt")
    for n in SIZES
    for truth in (0.5, 0.8, 0.95)
    for effect, shift in ((0.0, 0.0), (1.0, 0.7))
]
