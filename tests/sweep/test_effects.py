"""Differences between settings: at equal KL, at equal length, over seeds; against plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from comal_fast.compare.tournament import Tournament
from comal_fast.config import load_config
from comal_fast.config.oracle import BradleyTerryConfig
from comal_fast.statistics import Interval
from comal_fast.sweep.averages import averages
from comal_fast.sweep.blocks import Block
from comal_fast.sweep.collect import judge_name
from comal_fast.sweep.effects import at_equal_kl, find_effects
from comal_fast.sweep.grid import Axis, Cell
from comal_fast.sweep.prompt_values import pseudo_values
from comal_fast.sweep.results import Result

AXIS, SEEDS = Axis("algorithm.eta", ("1", "2")), Axis("seed", ("0", "1", "2"))
RATE = Interval(0.5, 0.4, 0.6)


def block(
    tiny_run: Path, seed: int, wins: np.ndarray, nats: np.ndarray, direct: float,
    held_out: range | None = None,
) -> Block:  # fmt: skip
    """Two cells of one seed: win rates (2, n), KLs (2, n), and the second's against the first.

    `held_out`: the prompts' names; by default no other seed has them.
    """
    results, n = [], wins.shape[1]
    names = tuple((None if held_out else seed, i) for i in held_out or range(n))
    for number, value in enumerate(AXIS.values):
        settings = {AXIS.key: value, "seed": str(seed)}
        cell = Cell(f"{value}-{seed}", settings, load_config(tiny_run, [f"seed={seed}"]))
        results.append(
            Result(cell, tiny_run, RATE, RATE, wins[number], RATE, nats[number], 9.0, [], None,
                   f"block {seed}", 1.0, names, np.resize([1.0, -1.0], n))  # type: ignore[arg-type]
        )  # fmt: skip
    game = np.full((2, 2, n), 0.5)
    game[1, 0], game[0, 1] = direct, 1 - direct
    lengths = np.stack([np.full(n, 10.0), np.full(n, 10.0)])
    cells = tuple(r.cell.name for r in results)
    return Block(results, Tournament(cells, game, np.zeros((2, 2)), lengths), None)


def test_equal_kl() -> None:
    """Of two policies on one curve of the root of the KL, neither is better; one above it is."""
    nats = np.array([4.0, 16.0])
    on_it = np.array([0.5 + 0.05 * np.sqrt(4.0), 0.5 + 0.05 * np.sqrt(16.0), *nats])
    assert at_equal_kl(on_it) == pytest.approx(0.0)
    above = on_it + [0.02, 0, 0, 0]
    assert at_equal_kl(above) == pytest.approx(0.02)
    swapped = above[[1, 0, 3, 2]]
    assert at_equal_kl(swapped) == pytest.approx(-0.02)
    assert np.isnan(at_equal_kl(np.array([0.6, 0.5, 4.0, 0.0])))


def test_seeds_widen_the_interval(tiny_run: Path) -> None:
    """Prompts that agree in each seed, seeds that do not: the interval is the seeds'."""
    rng, n = np.random.default_rng(0), 200
    noise = rng.normal(0, 0.05, (3, n))
    blocks = []
    for seed, shift in enumerate((-0.1, 0.0, 0.1)):
        wins = np.stack([0.5 + noise[seed], 0.5 + noise[seed] + shift])
        blocks.append(block(tiny_run, seed, wins, np.full((2, n), 4.0), 0.5 + shift))
    (effect,) = find_effects([AXIS, SEEDS], blocks)
    assert (effect.a, effect.b, effect.pairs) == ("2", "1", 3)
    assert effect.difference.mean == pytest.approx(0.0, abs=1e-12)
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # Student's, two degrees of freedom
    assert effect.difference.high == pytest.approx(half)
    assert effect.difference.low == pytest.approx(-half)
    assert effect.equal_kl.high == pytest.approx(half, rel=1e-3)
    assert effect.head_to_head.mean == pytest.approx(0.5)
    assert not np.isfinite(effect.second.mean)
    (one,) = find_effects([AXIS, SEEDS], blocks[2:])
    assert one.difference.low < one.difference.mean < one.difference.high
    assert one.difference.mean == pytest.approx(0.1) and one.difference.low > 0.05


def test_prompts_that_seeds_share_widen_the_interval(tiny_run: Path) -> None:
    """The differences of the prompts are the same in every seed: more seeds are no news."""
    n = 64
    apart = np.random.default_rng(2).normal(0, 0.1, n)
    wins = np.stack([np.full(n, 0.5), 0.5 + apart])
    nats = np.full((2, n), 4.0)

    def width(held_out: range | None) -> float:
        blocks = [block(tiny_run, seed, wins, nats, 0.5, held_out) for seed in range(3)]
        (effect,) = find_effects([AXIS, SEEDS], blocks)
        return effect.difference.high - effect.difference.low

    student = 2 * 1.998 * apart.std(ddof=1) / np.sqrt(n)  # of one seed's prompts
    assert width(range(n)) == pytest.approx(student, rel=1e-3)
    assert width(None) == pytest.approx(0, abs=1e-9)


def test_pseudo_values_of_a_mean_are_the_values() -> None:
    values = np.random.default_rng(3).random((20, 4))
    found = pseudo_values(lambda means: means[:, 0] - means[:, 1], values)
    np.testing.assert_allclose(found, values[:, 0] - values[:, 1])
    curved = pseudo_values(lambda means: means[:, 0] * means[:, 1], values)
    assert curved.mean() == pytest.approx(values[:, 0].mean() * values[:, 1].mean())


def test_averages_over_seeds(tiny_run: Path) -> None:
    """A setting's mean over three seeds, about Student's interval; of a single seed none."""
    rng, results = np.random.default_rng(4), []
    noise = rng.normal(0, 0.1, 200)
    noise -= noise.mean()
    for seed, rate in enumerate((0.5, 0.6, 0.7)):
        wins = np.stack([rate + noise, 0.6 + noise])
        results += block(tiny_run, seed, wins, np.full((2, 200), 4.0), 0.5).results
    one, other = averages(results, {})
    assert (one.settings, one.seeds) == ({AXIS.key: "1"}, 3)
    assert one.win_rate.mean == pytest.approx(0.6)
    half = 4.302652729911275 * 0.1 / np.sqrt(3)
    assert one.win_rate.high - one.win_rate.low == pytest.approx(2 * half, rel=0.15)
    assert other.win_rate.mean == pytest.approx(0.6) and other.win_rate.low > 0.55
    assert one.kl.mean == one.kl.low == pytest.approx(4)
    assert not np.isfinite(one.second.mean)
    second = {r.cell.name: np.full(200, 0.55) for r in results}
    assert averages(results, second)[1].second.mean == pytest.approx(0.55)
    assert averages(results[:2], {}) == []


def test_a_judge_is_named_without_this_machines_folders(tmp_path: Path) -> None:
    for model in (tmp_path / "reward", Path.cwd() / "reward", Path("hub/reward")):
        judge = BradleyTerryConfig(name="bradley_terry", model=str(model))
        expected = "hub/reward" if not model.is_absolute() else "reward"
        assert judge_name(judge) == f"bradley_terry {expected}"


def test_length_is_taken_out_of_head_to_head(tiny_run: Path) -> None:
    """Each seed's second policy is longer and preferred for that alone."""
    rng, n = np.random.default_rng(1), 300
    blocks = []
    for seed in range(2):
        made = block(tiny_run, seed, np.full((2, n), 0.5), np.full((2, n), 1.0), 0.5)
        assert made.game is not None
        extra = rng.normal(8, 10, n)
        made.game.lengths[1] += extra
        made.game.wins[1, 0] = expit(2 * np.tanh(extra / 10) + rng.normal(0, 0.2, n))
        made.game.wins[0, 1] = 1 - made.game.wins[1, 0]
        blocks.append(made)
    (effect,) = find_effects([AXIS, SEEDS], blocks)
    assert effect.head_to_head.mean > 0.6
    assert effect.equal_length.mean == pytest.approx(0.5, abs=0.04)
