"""What a grid shows: a win rate per cell, and paired differences between settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.compare.entrants import load_entrants
from comal_fast.compare.tournament import Standing, Tournament, nash_support, play, standings
from comal_fast.errors import InputError
from comal_fast.lm_game.measure import measure
from comal_fast.oracles import make_oracle
from comal_fast.statistics import Array, Interval, bootstrap_interval, to_interval
from comal_fast.store.artefacts import Table
from comal_fast.sweep.grid import Axis, Cell
from comal_fast.sweep.runs import is_finished, spent_seconds
from comal_fast.system.terminal import progress

NOWHERE = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Exact:
    """How far an iterate is from the Nash policy of a known game: means over the run's prompts."""

    gap: Interval
    """Duality gap."""
    total_variation: Interval


@dataclass(frozen=True)
class Result:
    """A finished cell: its resulting iterate on the held-out prompts."""

    cell: Cell
    samples: Table
    """Held-out samples of the iterate."""
    win_rate: Interval
    controlled: Interval
    """The same at equal length."""
    wins: Array
    """(n,) by prompt, against the initial policy."""
    kl: Interval
    """To the initial policy, nats per response."""
    tokens: float
    findings: list[str]
    """Names of the diagnostics that fired."""
    ended: str | None
    """The diagnostic that ended the run."""
    prompts: str
    """Same in cells that one oracle evaluated against the same responses to the same prompts."""
    seconds: float
    exact: Exact | None = None
    """Where the oracle is a known game."""


@dataclass(frozen=True)
class Effect:
    """One value of an option against another, everything else the same, averaged over the rest."""

    axis: Axis
    a: str
    b: str
    difference: Interval
    """Win rate against the initial policy: of `a` minus of `b`, paired by prompt."""
    joint: Interval
    """The same at 95 % over all effects of the sweep together (Bonferroni)."""
    head_to_head: Interval
    """Win rate of `a`'s policies against `b`'s."""
    pairs: int
    """Pairs of cells that it averages over."""


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

    @property
    def game_known(self) -> bool:
        """Whether exact distances were measured."""
        return any(r.exact for r in self.results)


def collect(folder: Path, axes: list[Axis], cells: list[Cell], failed: dict[str, str]) -> Sweep:
    """Read the finished cells, and compare them. InputError where there is none."""
    spent = spent_seconds(folder)
    results = [_result(c, spent.get(c.name, 0.0)) for c in cells if is_finished(c)]
    if not results:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise InputError(f"{folder}: no cell of the grid finished ({reasons or 'none was run'})")
    one_block = len({r.prompts for r in results}) == 1
    game = _head_to_head(results) if one_block and len(results) > 1 else None
    first = results[0].cell
    settings = first.config.evaluation.bootstrap, first.config.seed
    return Sweep(
        folder,
        axes,
        cells,
        results,
        failed,
        _effects(axes, results, game),
        standings(game.names, game.wins, *settings) if game else [],
        nash_support(game, first.config.seed).tolist() if game else [],
        _summary(first),
    )


def _result(cell: Cell, seconds: float) -> Result:
    summary = _summary(cell)
    final = cell.directory.iteration(summary["result"])
    evaluation = final.evaluation.read()
    n = evaluation["n_prompts"]
    half = {"mean": 0.5, "ci95": [0.5, 0.5]}
    itself = {**half, "values": [0.5] * n, "length_controlled": half}  # rolled back to π_0
    against = evaluation["win_rates"].get("0", itself)
    return Result(
        cell=cell,
        samples=final.eval_samples,
        win_rate=to_interval(against) or NOWHERE,
        controlled=to_interval(against["length_controlled"]) or NOWHERE,
        wins=np.array(against["values"]),
        kl=to_interval(evaluation["kl_to_initial"]) or NOWHERE,
        tokens=evaluation["response_length"]["mean"],
        findings=sorted({f["name"] for f in summary["findings"]}),
        ended=(summary["ended"] or {}).get("by"),
        prompts=f"{cell.directory.iteration(0).eval_samples.key()} {cell.config.oracle}",
        seconds=seconds,
        exact=_exact(cell, summary["result"]),
    )


def _summary(cell: Cell) -> dict[str, Any]:
    found = cell.directory.read_summary()
    assert found is not None, "a finished cell has one"
    return found


def _exact(cell: Cell, iterate: int) -> Exact | None:
    if cell.config.oracle.name != "matrix":
        return None
    measured = measure(cell.config)
    settings = cell.config.evaluation.bootstrap, cell.config.seed
    gap, away = (
        Interval(values.mean(), *bootstrap_interval(values, *settings))
        for values in (measured.gap[iterate], measured.total_variation[iterate])
    )
    return Exact(gap, away)


def _head_to_head(results: Sequence[Result]) -> Tournament:
    """The round robin of the cells' resulting policies."""
    samples = {r.cell.name: r.samples for r in results}
    entrants, prompts, _ = load_entrants(samples)
    cell = results[0].cell
    oracle = make_oracle(cell.config.oracle, cell.directory.oracle_cache)
    total = len(results) * (len(results) - 1) // 2 * len(prompts)
    with progress("cells against each other", total, "comparisons") as advance:
        return play(entrants, prompts, oracle, advance)


def _effects(
    axes: Sequence[Axis], results: Sequence[Result], game: Tournament | None
) -> list[Effect]:
    """An effect per two values of an axis, where cells differ in it alone and share prompts."""
    wanted = [(axis, a, b) for axis in axes for b, a in combinations(axis.values, 2)]
    matched = [(axis, a, b, _matches(axis, a, b, results)) for axis, a, b in wanted]
    matched = [m for m in matched if m[3]]
    level = 1 - 0.05 / max(1, len(matched))
    effects = []
    for axis, a, b, pairs in matched:
        config = results[0].cell.config
        resamples, seed = config.evaluation.bootstrap, config.seed
        # prompts are the unit: the average over the pairs of cells on each prompt
        blocks: dict[str, list[Array]] = {}
        for i, j in pairs:
            blocks.setdefault(results[i].prompts, []).append(results[i].wins - results[j].wins)
        values = np.concatenate([np.mean(block, axis=0) for block in blocks.values()])
        versus = NOWHERE
        if game is not None:
            direct = np.mean([game.wins[i, j] for i, j in pairs], axis=0)
            versus = Interval(direct.mean(), *bootstrap_interval(direct, resamples, seed))
        effects.append(
            Effect(
                axis, a, b,
                Interval(values.mean(), *bootstrap_interval(values, resamples, seed)),
                Interval(values.mean(), *bootstrap_interval(values, resamples, seed, level)),
                versus, len(pairs),
            )
        )  # fmt: skip
    return effects


def _matches(axis: Axis, a: str, b: str, results: Sequence[Result]) -> list[tuple[int, int]]:
    """(cell with a, cell with b), all other settings and the held-out prompts the same."""
    places = {json.dumps(r.cell.settings, sort_keys=True): i for i, r in enumerate(results)}
    pairs = []
    for i, r in enumerate(results):
        if r.cell.settings[axis.key] != a:
            continue
        other = json.dumps({**r.cell.settings, axis.key: b}, sort_keys=True)
        if (j := places.get(other)) is not None and results[j].prompts == r.prompts:
            pairs.append((i, j))
    return pairs


def to_json(sweep: Sweep) -> dict[str, Any]:
    """What sweep.json holds: cells, effects and the game, as plain containers."""
    return {
        "axes": {axis.key: list(axis.values) for axis in sweep.axes},
        "cells": [
            {
                "name": r.cell.name,
                "settings": r.cell.settings,
                "win_rate": _plain(r.win_rate),
                "length_controlled": _plain(r.controlled),
                "kl_to_initial": _plain(r.kl),
                "tokens": r.tokens,
                "findings": r.findings,
                "ended": r.ended,
                "seconds": r.seconds,
                "duality_gap": _plain(r.exact.gap) if r.exact else None,
                "total_variation": _plain(r.exact.total_variation) if r.exact else None,
            }
            for r in sweep.results
        ],
        "failed": sweep.failed,
        "effects": [
            {
                "option": e.axis.key,
                "first": e.a,
                "second": e.b,
                "difference": _plain(e.difference),
                "joint": _plain(e.joint),
                "head_to_head": _plain(e.head_to_head)
                if np.isfinite(e.head_to_head.mean)
                else None,
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
            }
            for s, share in zip(sweep.standings, sweep.support, strict=True)
        ],
    }


def _plain(value: Interval) -> dict[str, Any]:
    return {"mean": float(value.mean), "ci95": [float(value.low), float(value.high)]}
