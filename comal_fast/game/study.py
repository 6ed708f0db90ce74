"""Every algorithm on many random games: what share converges, how far, at what cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from comal_fast.game.compare import (
    CONVERGED,
    CRITERIA,
    VERDICTS,
    Entry,
    calls_to_converge,
    verdict,
)
from comal_fast.game.families import random_game
from comal_fast.game.nash import is_falling, kl_divergence, nash_policy
from comal_fast.game.preference import Array, Game, advantage
from comal_fast.game.report import versions

SIZES = (3, 50)
STUDY_COLUMNS = (
    "median, worst: last duality gap. to 1e-6: median oracle calls of the games that get there. "
    "KL falls: share of the games on which KL(Nash ‖ π) never rises."
)
_TOGETHER = 25  # games of similar size that are played as one batch, padded to the largest


@dataclass(frozen=True)
class Result:
    """An algorithm on all the games: lists with one entry a game, and a curve over oracle calls."""

    label: str
    solver: str
    options: dict[str, Any]
    verdicts: list[str]
    final_gap: list[float]
    calls_to_converge: list[int | None]
    kl_never_rises: list[bool]
    curve_calls: list[int]
    curve_share: list[float]
    """Share of the games whose gap is ≤ 1e-6 at that many calls."""

    def share(self, name: str) -> float:
        """Share of the games with that verdict, in [0, 1]."""
        return self.verdicts.count(name) / len(self.verdicts)


def study_games(count: int, seed: int) -> list[Game]:
    """`count` random games of sizes uniform on 3 … 50, small ones first."""
    sizes = np.sort(np.random.default_rng(seed).integers(SIZES[0], SIZES[1] + 1, count))
    return [random_game(int(n), seed + i) for i, n in enumerate(sizes)]


def run_study(
    games: list[Game], entries: list[Entry], advance: Callable[[], None] = lambda: None
) -> list[Result]:
    """Play every entry on every game from the uniform policy. `advance` is called per
    entry and game."""
    batches = [_Batch(games[i : i + _TOGETHER]) for i in range(0, len(games), _TOGETHER)]
    results = []
    for entry in entries:
        parts = []
        for batch in batches:
            parts.append(batch.play(entry))
            for _ in range(len(batch.matrix)):
                advance()
        gaps = np.concatenate([gap for gap, *_ in parts], axis=1)
        calls = parts[0][1]
        results.append(
            Result(
                entry.label,
                entry.solver,
                entry.options,
                [name for *_, names, _ in parts for name in names],
                gaps[-1].tolist(),
                [calls_to_converge(gap, calls) for gap in gaps.T],
                [bool(falls) for *_, monotone in parts for falls in monotone],
                calls.tolist(),
                (gaps <= CONVERGED).mean(axis=1).tolist(),
            )
        )
    return results


@dataclass(frozen=True)
class Chosen:
    """COMAL auto beside fixed settings: shares of `games`, those that any of the two solved."""

    games: int
    best: str
    """The one setting that solves most of them, and of those with as many in the fewest calls."""
    within_best: float
    within_each: float
    """Of the games on which auto takes at most twice the calls of the fastest setting of all."""


def against_fixed(results: list[Result]) -> Chosen:
    """Compare results[0] with the rest, in oracle calls to a gap of 1e-6."""
    calls = np.array(
        [[np.inf if c is None else c for c in result.calls_to_converge] for result in results]
    )
    calls = calls[:, np.isfinite(calls).any(axis=0)]
    auto, fixed = calls[0], calls[1:]
    solved = np.isfinite(fixed)
    total = np.where(solved, fixed, 0).sum(axis=1)
    order = np.lexsort((total, -solved.sum(axis=1)))
    best = int(order[0])

    def within(other: Array) -> float:
        return float((auto <= 2 * other).mean()) if len(auto) else 0.0

    return Chosen(
        len(auto), results[best + 1].label, within(fixed[best]), within(fixed.min(axis=0))
    )


class _Batch:
    """Games of different sizes as one array; a response that a game lacks has probability 0."""

    def __init__(self, games: list[Game]) -> None:
        n = max(len(game.names) for game in games)
        self.matrix = np.full((len(games), n, n), 0.5)
        self.start, self.nash = np.zeros((2, len(games), n))
        for g, game in enumerate(games):
            size = len(game.names)
            self.matrix[g, :size, :size] = game.matrix
            self.start[g, :size] = 1 / size
            self.nash[g, :size] = nash_policy(game.matrix)

    def play(self, entry: Entry) -> tuple[Array, NDArray[np.int64], list[str], list[bool]]:
        """Gaps (T, G), calls (T,), verdicts, and whether KL(Nash ‖ π_t) never rises."""
        trajectory = entry.play(self.matrix, self.start)
        policies = trajectory.policies.swapaxes(0, 1)  # (G, T, n)
        # a padded row of P − ½ is 0, and the maximum over the real ones is never below
        gap = 2 * (policies @ advantage(self.matrix).swapaxes(1, 2)).max(axis=-1).T
        kl = kl_divergence(self.nash, trajectory.log_policies)
        verdicts = [verdict(gap[:, g], kl[:, g], policies[g]) for g in range(len(policies))]
        return gap, trajectory.calls[:, 0], verdicts, [is_falling(one) for one in kl.T]


def study_table(results: list[Result]) -> Table:
    """A table, a row per algorithm; STUDY_COLUMNS says what its columns are."""
    table = Table(box=None, pad_edge=False)
    table.add_column("algorithm", no_wrap=True)
    headings = ("conv.", "falls", "stops", "cycles", "median", "worst", "to 1e-6", "KL falls")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        calls = [c for c in result.calls_to_converge if c is not None]
        table.add_row(
            result.label,
            *(f"{result.share(name):.0%}" for name in VERDICTS),
            f"{np.median(result.final_gap):.1e}",
            f"{np.max(result.final_gap):.1e}",
            f"{np.median(calls):,.0f}" if calls else "–",
            f"{np.mean(result.kl_never_rises):.0%}",
        )
    return table


def study_json(games: list[Game], seed: int, results: list[Result]) -> bytes:
    """The JSON file of everything that was measured, one entry per algorithm and game."""
    content = {
        "seed": seed,
        "sizes": [len(game.names) for game in games],
        "criteria": CRITERIA,
        "algorithms": [asdict(result) for result in results],
        "versions": versions(),
    }
    return (json.dumps(content) + "\n").encode()
