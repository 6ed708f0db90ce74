"""How many prompts and seeds would show a difference, from what the cells measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import nct, t

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.statistics import Interval
from comal_fast.sweep.grid import Cell
from comal_fast.sweep.power import Variances, power_table, variances
from comal_fast.sweep.prompt_values import SeedValues, interval_of
from comal_fast.sweep.results import Result


def results(
    tiny_run: Path, wins: dict[tuple[str, int], np.ndarray], shared: bool = False
) -> list[Result]:
    """A finished cell for each (setting, seed). `shared`: all seeds hold out the same prompts."""
    rate, found = Interval(0.5, 0.4, 0.6), []
    for (setting, seed), values in wins.items():
        settings = {"algorithm.eta": setting, "seed": str(seed)}
        cell = Cell(f"{setting}-{seed}", settings, load_config(tiny_run, [f"seed={seed}"]))
        table: Path = tiny_run
        found.append(
            Result(
                cell,
                table,
                rate,
                rate,
                values,
                rate,
                values,
                9.0,
                [],
                None,
                f"block {seed}",
                1.0,
                tuple((None if shared else seed, i) for i in range(len(values))),
                values,
            )  # type: ignore[arg-type]  # fmt: skip
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


def test_what_seeds_share_is_found_again(tiny_run: Path) -> None:
    """d has deviation 0.3 between prompts, 0.4 with what differs between seeds too."""
    rng, n = np.random.default_rng(5), 400
    prompts, wins = 0.3 * rng.normal(size=n), {}
    for seed in range(20):
        wins["a", seed] = rng.uniform(0.3, 0.7, n)
        noise = math.sqrt(0.4**2 - 0.3**2) * rng.normal(size=n)
        wins["b", seed] = wins["a", seed] - prompts - 0.03 * rng.normal() - noise
    found = variances(results(tiny_run, wins, shared=True))
    assert math.sqrt(found.prompt) == pytest.approx(0.4, rel=0.05)
    assert math.sqrt(found.shared) == pytest.approx(0.3, rel=0.05)
    assert found.seed is not None and math.sqrt(found.seed) == pytest.approx(0.03, rel=0.4)
    assert variances(results(tiny_run, wins)).shared == 0


CASES = [
    (Variances(0.15**2, 0.0, 1, 1), 0.02, 3),
    (Variances(0.3**2, 0.01**2, 1, 1), 0.05, 3),
    (Variances(0.3**2, 0.02**2, 1, 1), 0.05, 5),
    (Variances(0.3**2, 0.02**2, 1, 1), 0.03, 10),
    (Variances(0.3**2, 0.01**2, 1, 1, shared=0.2**2), 0.05, 3),
    (Variances(0.3**2, 0.02**2, 1, 1, shared=0.28**2), 0.05, 10),
    (Variances(0.3**2, None, 1, 1), 0.05, 1),
]


@pytest.mark.parametrize("found, delta, seeds", CASES)
@pytest.mark.parametrize("draw", [0, 1])
def test_what_is_needed_has_the_power_that_it_promises(
    found: Variances, delta: float, seeds: int, draw: int
) -> None:
    """By simulation: 80 % of studies of that size find it, by the interval that a sweep prints."""
    rng, studies = np.random.default_rng(draw), 1500
    prompts = int(found.prompts_needed(delta, seeds))
    assert prompts >= 20
    shown = 0
    for _ in range(studies):
        common = math.sqrt(found.shared) * rng.normal(size=prompts)
        rest = math.sqrt(found.prompt - found.shared) * rng.normal(size=(seeds, prompts))
        shift = math.sqrt(found.seed or 0.0) * rng.normal(size=(seeds, 1))
        values = delta + common + rest + shift
        names = [
            [(seed if found.shared == 0 else 0, i) for i in range(prompts)] for seed in range(seeds)
        ]
        study = [SeedValues(n, row) for n, row in zip(names, values, strict=True)]
        shown += interval_of(study, "difference").low > 0
    assert shown / studies == pytest.approx(0.8, abs=0.02 + 2 * math.sqrt(0.16 / studies))


def test_power_is_that_of_students_test_where_no_prompts_are_shared() -> None:
    """Against the noncentral t distribution; normal quantiles promised 148 prompts."""
    found = Variances(0.15**2, 0.0, 1, 1)
    for prompts in (148, 600):
        away = 0.02 / (0.15 / math.sqrt(3 * prompts))
        bound = t.ppf(0.975, 2)
        wanted = nct.sf(bound, 2, away) + nct.cdf(-bound, 2, away)
        assert found.power(0.02, 3, prompts) == pytest.approx(wanted, abs=1e-4)
    assert found.power(0.02, 3, 148) < 0.4
    assert found.prompts_needed(0.02, 3) == pytest.approx(600, abs=1)


def test_seeds_can_hide_a_difference() -> None:
    found = Variances(prompt=0.09, seed=0.03**2, pairs=1, samples=1)
    assert math.isinf(found.prompts_needed(0.02, 3))
    assert found.prompts_needed(0.02, 30) < math.inf
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
