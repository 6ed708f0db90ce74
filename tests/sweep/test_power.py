"""How many prompts and seeds would show a difference, from what the cells measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.statistics import Interval
from comal_fast.sweep.grid import Cell
from comal_fast.sweep.power import Variances, power_table, variances
from comal_fast.sweep.results import Result


def results(tiny_run: Path, wins: dict[tuple[str, int], np.ndarray]) -> list[Result]:
    """A finished cell for each (setting, seed)."""
    rate, found = Interval(0.5, 0.4, 0.6), []
    for (setting, seed), values in wins.items():
        settings = {"algorithm.eta": setting, "seed": str(seed)}
        cell = Cell(f"{setting}-{seed}", settings, load_config(tiny_run, [f"seed={seed}"]))
        table: Path = tiny_run
        found.append(
            Result(
                cell, table, rate, rate, values, rate, values, 9.0, [], None, f"block {seed}", 1.0
            )  # type: ignore[arg-type]
        )
    return found


def drawn(rng: np.random.Generator, prompts: int, seeds: int, apart: float) -> dict:
    """Two settings whose d has deviation 0.3 between prompts and `apart` between seeds."""
    wins = {}
    for seed in range(seeds):
        base = rng.uniform(0.3, 0.7, prompts)
        wins["a", seed] = base
        wins["b", seed] = base - 0.02 - apart * rng.normal() + 0.3 * rng.normal(size=prompts)
    return wins


def test_variances_are_found_again(tiny_run: Path) -> None:
    rng = np.random.default_rng(0)
    found = variances(results(tiny_run, drawn(rng, 400, 40, 0.04)))
    assert math.sqrt(found.prompt) == pytest.approx(0.3, rel=0.05)
    assert found.seed is not None and math.sqrt(found.seed) == pytest.approx(0.04, rel=0.3)
    assert (found.pairs, found.samples) == (1, 1)
    none = variances(results(tiny_run, drawn(rng, 400, 40, 0.0)))
    assert none.seed is not None and none.seed < 0.01**2
    assert variances(results(tiny_run, drawn(rng, 50, 1, 0.04))).seed is None


def test_what_is_needed_has_the_power_that_it_promises() -> None:
    """By simulation: a difference of 0.05 is found in about 80 % of studies of that size."""
    rng, seeds = np.random.default_rng(1), 5
    found = Variances(prompt=0.3**2, seed=0.02**2, pairs=1, samples=1)
    prompts = int(found.prompts_needed(0.05, seeds))
    assert 50 < prompts < 200
    means = (
        0.05
        + 0.02 * rng.normal(size=(4000, seeds))
        + 0.3 * rng.normal(size=(4000, seeds)) / math.sqrt(prompts)
    ).mean(axis=1)
    error = math.sqrt((0.02**2 + 0.3**2 / prompts) / seeds)
    assert (np.abs(means) > norm.ppf(0.975) * error).mean() == pytest.approx(0.8, abs=0.03)


def test_seeds_can_hide_a_difference() -> None:
    found = Variances(prompt=0.09, seed=0.03**2, pairs=1, samples=1)
    assert math.isinf(found.prompts_needed(0.02, 3))
    assert found.prompts_needed(0.02, 18) < math.inf
    assert Variances(0.09, None, 1, 1).prompts_needed(0.02, 1) == math.ceil(
        0.09 * (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 / 0.02**2
    )
    assert power_table(found).row_count == 4
    assert power_table(Variances(0.09, None, 1, 1)).row_count == 1


def test_settings_that_nobody_else_shares_prompts_with(tiny_run: Path) -> None:
    rng = np.random.default_rng(2)
    wins = {("a", 0): rng.random(20), ("b", 1): rng.random(20)}
    with pytest.raises(ValueError, match="no two settings finished on the same held-out prompts"):
        variances(results(tiny_run, wins))


def test_the_verb(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--grid", "tau_eta_ratio=0.1,1", "seed=0,1"]
    few = ["algorithm.iterations=1", "algorithm.ref_update_interval=1"]
    assert main(["sweep", str(tiny_run), *grid, "--power", *few]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 points" in out and "of the mean between seeds" in out
    assert main(["sweep", str(tiny_run), "--grid", "seed=0,1", "--power"]) == 2
    assert "seeds alone show no difference" in capsys.readouterr().err
