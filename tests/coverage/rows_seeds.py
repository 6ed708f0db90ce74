"""Rows of sweeps and studies: means over seeds whose prompts are partly shared, and differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from comal_fast.statistics import Interval
from comal_fast.statistics.seeds import Run, interval_over_seeds
from comal_fast.sweep.effects import at_equal_kl
from comal_fast.sweep.prompt_values import (
    SeedValues,
    equal_length_interval_of,
    interval_of,
    pseudo_values,
)
from coverage_suite import Drawn, Row
from draws import Generator, draw_hard, draw_lengths, draw_soft

SIZES = (10, 56, 256)
SEEDS = (3, 8)
SPREADS = (0.0, 0.02, 0.1)  # standard deviation of a seed's mean
POOLS = {"own prompts": None, "7 of 8 of a pool": 8 / 7, "the same prompts": 1.0}
"""Prompts of the pool that seeds draw from, as a multiple of one seed's; None: none are shared."""
NEAR_ONE = "lopsided and few prompts in common: the guard against losses not seen widens it"


def draw_prompts(generator: Generator, seeds: int, n: int, pool: float | None) -> np.ndarray:
    """Return (seeds, n) numbers of the prompts that each seed holds out."""
    if pool is None:
        return np.arange(seeds * n).reshape(seeds, n)
    size = max(n, round(pool * n))
    return np.stack([generator.permutation(size)[:n] for _ in range(seeds)])


def as_seeds(prompts: np.ndarray, values: np.ndarray) -> list[SeedValues]:
    """Return what a sweep knows of each seed."""
    return [SeedValues(tuple(p), v) for p, v in zip(prompts, values, strict=True)]


def _ends(found: Interval, truth: float) -> Drawn:
    return found.low, found.high, truth


def _mean_row(seeds: int, n: int, pool: str, spread: float) -> Row:
    """A difference of win rates between two settings of every seed: what a sweep averages."""

    def draw(generator: Generator) -> Drawn:
        prompts = draw_prompts(generator, seeds, n, POOLS[pool])
        values = 0.05 + generator.normal(0, 0.2, prompts.max() + 1)[prompts]
        values = values + generator.normal(0, 0.2, (seeds, n))
        values = values + generator.normal(0, spread, (seeds, 1))
        return _ends(interval_of(as_seeds(prompts, values), "difference"), 0.05)

    data = f"{seeds} seeds, {pool}, deviation {spread:g} between seeds"
    return Row("sweep's difference over seeds", data, n, 0.05, draw)


def _rate_row(
    kind: str, draw_rates: Callable[[Generator, np.ndarray], np.ndarray], seeds: int, n: int,
    pool: str, truth: float,
) -> Row:  # fmt: skip
    """Win rates of prompts that are easy or hard for every seed, by verdicts or probabilities."""

    def draw(generator: Generator) -> Drawn:
        prompts = draw_prompts(generator, seeds, n, POOLS[pool])
        easy = generator.beta(6 * truth, 6 * (1 - truth), prompts.max() + 1)
        values = draw_rates(generator, easy[prompts].clip(1e-3, 1 - 1e-3))
        return _ends(interval_of(as_seeds(prompts, values), "rate"), truth)

    bounds, why = None, ""
    if n == 56 and truth > 0.9:
        bounds, why = (0.93, 0.99), NEAR_ONE
    return Row("sweep's win rate over seeds", f"{seeds} seeds, {pool}, {kind}", n, truth, draw,
               bounds, why)  # fmt: skip


def _study_row(seeds: int, n: int, spread: float, shared: float) -> Row:
    """Two runs of `lm-game study` on the same prompts, their seeds drawn apart."""

    def draw(generator: Generator) -> Drawn:
        prompts = generator.normal(0, 0.3, n)

        def runs(mean: float, own: np.ndarray) -> list[Run]:
            values = mean + prompts + own + generator.normal(0, 0.1, (seeds, n))
            values = values + generator.normal(0, spread, (seeds, 1))
            return [dict(enumerate(row)) for row in values]

        one, other = (runs(mean, generator.normal(0, shared, n)) for mean in (0.5, 0.4))
        return _ends(interval_over_seeds(one, other), 0.1)

    data = f"{seeds} seeds each, deviations {spread:g} between seeds, {shared:g} of a run's prompts"
    return Row("lm-game study's difference", data, n, 0.1, draw)


def _equal_kl_row(seeds: int, n: int) -> Row:
    """Two settings on one curve of the root of the KL, one further along it: no difference."""

    def draw(generator: Generator) -> Drawn:
        prompts = draw_prompts(generator, seeds, n, 8 / 7)
        hard = generator.normal(0, 0.15, prompts.max() + 1)
        values = []
        for own in prompts:
            nats = generator.gamma(4, np.array([1.0, 4.0])[:, None], (2, n))
            wins = 0.5 + 0.05 * np.sqrt([[4.0], [16.0]]) + hard[own]
            table = np.concatenate([wins + generator.normal(0, 0.15, (2, n)), nats]).T
            values.append(pseudo_values(at_equal_kl, table))
        return _ends(interval_of(as_seeds(prompts, np.array(values)), "mean"), 0.0)

    return Row("sweep's difference at equal KL", f"{seeds} seed(s), 7 of 8 of a pool", n, 0.0, draw)


def _equal_length_row(seeds: int, n: int, truth: float) -> Row:
    """Win rates that rise with the length, of responses that are longer on average."""

    def draw(generator: Generator) -> Drawn | None:
        prompts = draw_prompts(generator, seeds, n, 8 / 7)
        extra = np.stack([draw_lengths(generator, n, 0.3) for _ in range(seeds)])
        centre = np.log(truth / (1 - truth))
        effect = np.tanh(extra / np.std(extra, axis=1, keepdims=True))
        mean = 1 / (1 + np.exp(-(centre + 0.8 * effect)))
        found = equal_length_interval_of(as_seeds(prompts, draw_soft(generator, mean)), list(extra))
        return _ends(found, truth) if np.isfinite(found.mean) else None

    return Row(
        "sweep's win rate at equal length", f"{seeds} seed(s), 7 of 8 of a pool", n, truth, draw
    )


ROWS = [
    *(
        _mean_row(seeds, n, pool, spread)
        for seeds in SEEDS
        for n in SIZES
        for pool in POOLS
        for spread in ((0.02,) if POOLS[pool] is None else SPREADS)
    ),
    *(
        _rate_row(kind, draw_rates, seeds, n, "7 of 8 of a pool", truth)
        for kind, draw_rates in (("0/1", draw_hard), ("soft", draw_soft))
        for seeds in SEEDS
        for n in SIZES
        for truth in (0.5, 0.8, 0.95)
    ),
    *(
        _study_row(seeds, n, spread, shared)
        for seeds in SEEDS
        for n in SIZES
        for spread, shared in ((0.0, 0.3), (0.05, 0.02))
    ),
    *(_equal_kl_row(seeds, n) for seeds in (1, *SEEDS) for n in SIZES),
    *(_equal_length_row(seeds, n, 0.8) for seeds in SEEDS for n in SIZES),
]
