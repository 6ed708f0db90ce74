"""Rows of means over prompts: win rates, accuracies, their differences, KLs and margins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from comal_fast.statistics import Interval, difference_interval, mean_interval, rate_interval
from coverage_suite import Drawn, Row
from draws import RATES, Generator, Rates, draw_divergences

SIZES = (10, 56, 256)
TRUTHS = (0.5, 0.7, 0.8, 0.9, 0.95)
LATTICE = "shares of 0/1 outcomes lie on a lattice, so that coverage jumps with the truth"
ALIKE = "lopsided and alike prompts: the guard against losses that were not seen widens it"


def _rate_row(kind: str, draw_rates: Rates, n: int, truth: float) -> Row:
    def draw(generator: Generator) -> Drawn:
        found = rate_interval(draw_rates(generator, np.full(n, truth)))
        return found.low, found.high, truth

    bounds, why = None, ""
    if kind in ("0/1", "0, ½, 1") and n == 56 and truth > 0.9:
        bounds, why = (0.93, 0.99), LATTICE
    if kind == "soft, prompts alike" and n == 56 and truth > 0.9:
        bounds, why = (0.93, 0.99), ALIKE
    return Row("win rate", kind, n, truth, draw, bounds, why)


def _difference_row(kind: str, draw_rates: Rates, n: int, rates: tuple[float, float]) -> Row:
    """Two policies on the same prompts: half of the prompts are hard for both."""

    def draw(generator: Generator) -> Drawn:
        hard = generator.normal(0, 0.04, n).clip(-0.05, 0.05)
        ours, theirs = (draw_rates(generator, rate + hard) for rate in rates)
        found = difference_interval(ours, theirs)
        return found.low, found.high, rates[0] - rates[1]

    data = f"{kind}, {rates[0]:.0%} and {rates[1]:.0%}"
    return Row("difference of win rates", data, n, rates[0] - rates[1], draw)


def _mean_row(
    interval: str, data: str, n: int, truth: float,
    draw_values: Callable[[Generator, int], np.ndarray],
) -> Row:  # fmt: skip
    def draw(generator: Generator) -> Drawn:
        found: Interval = mean_interval(draw_values(generator, n))
        return found.low, found.high, truth

    return Row(interval, data, n, truth, draw)


ROWS = [
    *(
        _rate_row(kind, draw_rates, n, truth)
        for kind, draw_rates in RATES.items()
        for n in SIZES
        for truth in TRUTHS
    ),
    *(
        _difference_row(kind, RATES[kind], n, rates)
        for kind in ("0/1", "soft")
        for n in SIZES
        for rates in ((0.6, 0.6), (0.7, 0.6), (0.9, 0.6))
    ),
    *(
        _mean_row(
            "KL", "exponential over prompts", n, truth,
            lambda generator, n, truth=truth: draw_divergences(generator, n, truth),
        )
        for n in SIZES
        for truth in (0.5, 8.0)
    ),
    *(
        _mean_row("margin", "normal", n, 1.0, lambda generator, n: generator.normal(1, 3, n))
        for n in SIZES
    ),
    *(
        _mean_row(
            "margin", "heavy tails", n, 1.0,
            lambda generator, n: 1 + 3 * generator.standard_t(5, n),
        )
        for n in SIZES
    ),
]  # fmt: skip
