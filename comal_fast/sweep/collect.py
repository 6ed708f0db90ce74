"""What a grid shows: a win rate per cell, paired differences between settings, their game."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.compare.tournament import Standing, nash_support, standings
from comal_fast.config.oracle import OracleConfig
from comal_fast.errors import InputError
from comal_fast.statistics import Array, Interval
from comal_fast.statistics.means import rate_interval
from comal_fast.statistics.means import to_json as interval_json
from comal_fast.sweep.averages import Average, averages
from comal_fast.sweep.blocks import find_blocks
from comal_fast.sweep.effects import Effect, find_effects
from comal_fast.sweep.grid import Axis, Cell
from comal_fast.sweep.results import Result, read_result, summary_of
from comal_fast.sweep.runs import is_finished, spent_seconds


@dataclass(frozen=True)
class Sweep:
    """All that is reported of a grid."""

    folder: Path
    axes: list[Axis]
    cells: list[Cell]
    results: list[Result]
    failed: dict[str, str]
    effects: list[Effect]
    standings: list[Standing]
    support: list[float]
    """Per cell: share of resamples of the prompts whose Nash mixture holds it."""
    summary: dict[str, Any]
    """summary.json of the first finished cell: versions, device."""
    second: dict[str, Interval] = field(default_factory=dict)
    """Cell → win rate against the initial policy, as the second judge sees it."""
    judge: str = ""
    """The second judge."""
    averages: list[Average] = field(default_factory=list)
    """Of settings with several seeds."""

    @property
    def game_known(self) -> bool:
        """Whether exact distances were measured."""
        return any(r.exact for r in self.results)


def collect(
    folder: Path, axes: list[Axis], cells: list[Cell], failed: dict[str, str],
    judge: OracleConfig | None = None,
) -> Sweep:  # fmt: skip
    """Read the finished cells, and compare them. InputError where there is none.

    `judge`: a second one, who is asked about all responses too.
    """
    spent = spent_seconds(folder)
    results = [read_result(c, spent.get(c.name, 0.0)) for c in cells if is_finished(c)]
    if not results:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise InputError(f"{folder}: no cell of the grid finished ({reasons or 'none was run'})")
    blocks = find_blocks(results, judge, folder)
    game = blocks[0].game if len(blocks) == 1 else None
    first = results[0].cell
    settings = first.config.evaluation.bootstrap, first.config.seed
    second: dict[str, Array] = {}
    for block in blocks:
        if block.second is not None:
            for r, wins in zip(block.results, block.second.wins[1:, 0], strict=True):
                second[r.cell.name] = wins
    return Sweep(
        folder,
        axes,
        cells,
        results,
        failed,
        find_effects(axes, blocks),
        standings(game.names, game.wins, *settings) if game else [],
        nash_support(game, first.config.seed).tolist() if game else [],
        summary_of(first),
        {cell: rate_interval(wins) for cell, wins in second.items()},
        judge_name(judge),
        averages(results, second),
    )


def judge_name(judge: OracleConfig | None) -> str:
    """What pages call the second judge: "" for none."""
    if judge is None:
        return ""
    model = getattr(judge, "model", None)
    if not isinstance(model, str):
        return judge.name
    place = Path(model)
    if place.is_absolute():  # a page is read elsewhere
        here = Path.cwd()
        model = str(place.relative_to(here)) if place.is_relative_to(here) else place.name
    return f"{judge.name} {model}"


def to_json(sweep: Sweep) -> dict[str, Any]:
    """What sweep.json holds: cells, effects and the game, as plain containers."""
    return {
        "judge": sweep.judge or None,
        "axes": {axis.key: list(axis.values) for axis in sweep.axes},
        "cells": [
            {
                "name": r.cell.name,
                "settings": r.cell.settings,
                "win_rate": interval_json(r.win_rate),
                "length_controlled": _known(r.controlled),
                "second_judge": _known(sweep.second.get(r.cell.name)),
                "kl_to_initial": interval_json(r.kl),
                "tokens": r.tokens,
                "findings": r.findings,
                "ended": r.ended,
                "seconds": r.seconds,
                "duality_gap": interval_json(r.exact.gap) if r.exact else None,
                "total_variation": interval_json(r.exact.total_variation) if r.exact else None,
            }
            for r in sweep.results
        ],
        "failed": sweep.failed,
        "averages": [
            {
                "settings": a.settings,
                "seeds": a.seeds,
                "win_rate": _known(a.win_rate),
                "length_controlled": _known(a.controlled),
                "second_judge": _known(a.second),
                "kl_to_initial": _known(a.kl),
            }
            for a in sweep.averages
        ],
        "effects": [
            {
                "option": e.axis.key,
                "first": e.a,
                "second": e.b,
                "difference": interval_json(e.difference),
                "joint": interval_json(e.joint),
                "head_to_head": _known(e.head_to_head),
                "head_to_head_at_equal_length": _known(e.equal_length),
                "difference_at_equal_kl": _known(e.equal_kl),
                "second_judge": _known(e.second),
                "second_judge_head_to_head": _known(e.second_head_to_head),
                "pairs": e.pairs,
            }
            for e in sweep.effects
        ],
        "game": [
            {
                "cell": s.name,
                "nash_weight": s.nash,
                "in_nash_of_resamples": share,
                "exploitability": s.exploitability,
                "ci95": list(s.interval),
                "best_opponent": s.best_opponent,
                "beaten_by": s.beaten_by,
            }
            for s, share in zip(sweep.standings, sweep.support, strict=True)
        ],
    }


def _known(value: Interval | None) -> dict[str, Any] | None:
    return interval_json(value) if value is not None and np.isfinite(value.mean) else None
