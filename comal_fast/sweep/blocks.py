"""Cells that hold out the same prompts, and what their policies win against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comal_fast.compare.entrants import load_entrants
from comal_fast.compare.tournament import Tournament, play
from comal_fast.config.oracle import OracleConfig
from comal_fast.oracles import make_oracle
from comal_fast.sweep.results import Result
from comal_fast.system.terminal import progress

INITIAL = "initial"


@dataclass(frozen=True)
class Block:
    """Cells that one oracle evaluated against the same responses to the same prompts."""

    results: list[Result]
    game: Tournament | None
    """Of the cells' resulting policies; None of a cell alone."""
    second: Tournament | None
    """The second judge's, of the initial policy and them."""


def find_blocks(results: list[Result], judge: OracleConfig | None, folder: Path) -> list[Block]:
    """The blocks, in the order of the cells. `folder`: keeps the second judge's answers."""
    apart: dict[str, list[Result]] = {}
    for result in results:
        apart.setdefault(result.prompts, []).append(result)
    return [
        Block(
            block,
            _play(block, None, folder) if len(block) > 1 else None,
            _play(block, judge, folder) if judge else None,
        )
        for block in apart.values()
    ]


def _play(block: list[Result], judge: OracleConfig | None, folder: Path) -> Tournament:
    cell = block[0].cell
    samples = {r.cell.name: r.samples for r in block}
    if judge is not None:
        samples = {INITIAL: cell.directory.iteration(0).eval_samples, **samples}
        oracle = make_oracle(judge, folder / "judge_cache.sqlite")
        said = "the second judge"
    else:
        oracle = make_oracle(cell.config.oracle, cell.directory.oracle_cache)
        said = "cells against each other"
    entrants, prompts, _ = load_entrants(samples)
    total = len(entrants) * (len(entrants) - 1) // 2 * len(prompts)
    with progress(said, total, "comparisons") as advance:
        return play(entrants, prompts, oracle, advance)
