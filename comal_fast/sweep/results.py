"""What a finished cell measured on its held-out prompts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from comal_fast.lm_game.measure import measure
from comal_fast.phases.evaluate import prompt_lengths
from comal_fast.statistics import NOWHERE, Array, Interval, to_interval
from comal_fast.statistics.means import mean_interval, rate_interval
from comal_fast.store.artefacts import Table
from comal_fast.sweep.grid import Cell


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
    """The same at equal length; NaN where `not_comparable` says why."""
    wins: Array
    """(n,) by prompt, against the initial policy."""
    kl: Interval
    """To the initial policy, nats per response."""
    nats: Array
    """(n,) the same by prompt."""
    tokens: float
    findings: list[str]
    """Names of the diagnostics that fired."""
    ended: str | None
    """The diagnostic that ended the run."""
    prompts: str
    """Same in cells that one oracle evaluated against the same responses to the same prompts."""
    seconds: float
    held_out: tuple[Hashable, ...]
    """(n,) the tokens of each held-out prompt, by which other seeds' prompts are matched."""
    extra_tokens: Array
    """(n,) by prompt, how much longer the responses are than the initial policy's."""
    not_comparable: str | None = None
    """Why there is no win rate at equal length."""
    exact: Exact | None = None
    """Where the oracle is a known game."""


def read_result(cell: Cell, seconds: float) -> Result:
    """`seconds`: that the cell took."""
    summary = summary_of(cell)
    final = cell.directory.iteration(summary["result"])
    evaluation = final.evaluation.read()
    n = evaluation["n_prompts"]
    half = {"mean": 0.5, "ci95": [0.5, 0.5]}
    itself = {**half, "values": [0.5] * n, "length_controlled": half}  # rolled back to π_0
    against = evaluation["win_rates"].get("0", itself)
    initial, samples = cell.directory.iteration(0).eval_samples, final.eval_samples.read()
    numbers, tokens = samples["prompt_id"].to_pylist(), samples["prompt_ids"].to_pylist()
    held_out = {number: tuple(ids) for number, ids in zip(numbers, tokens, strict=True)}
    return Result(
        cell=cell,
        samples=final.eval_samples,
        win_rate=to_interval(against) or NOWHERE,
        controlled=to_interval(against["length_controlled"]) or NOWHERE,
        wins=np.array(against["values"]),
        kl=to_interval(evaluation["kl_to_initial"]) or NOWHERE,
        nats=np.array(evaluation["kl_to_initial"]["values"]),
        tokens=evaluation["response_length"]["mean"],
        findings=sorted({f["name"] for f in summary["findings"]}),
        ended=(summary["ended"] or {}).get("by"),
        prompts=f"{initial.key()} {cell.config.oracle}",
        seconds=seconds,
        held_out=tuple(held_out[number] for number in sorted(held_out)),
        extra_tokens=prompt_lengths(samples) - prompt_lengths(initial.read()),
        not_comparable=against["length_controlled"].get("note"),
        exact=_exact(cell, summary["result"]),
    )


def summary_of(cell: Cell) -> dict[str, Any]:
    """What summary.json of a finished cell holds."""
    found = cell.directory.read_summary()
    assert found is not None, "a finished cell has one"
    return found


def _exact(cell: Cell, iterate: int) -> Exact | None:
    if cell.config.oracle.name != "matrix":
        return None
    measured = measure(cell.config)
    return Exact(
        mean_interval(measured.gap[iterate]), rate_interval(measured.total_variation[iterate])
    )
