"""What a setting wins over the seeds: cells that differ in their seed alone, taken together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from comal_fast.statistics import NOWHERE, Array, Interval
from comal_fast.sweep.prompt_values import SeedValues, equal_length_interval_of, interval_of
from comal_fast.sweep.results import Result


@dataclass(frozen=True)
class Average:
    """A setting's means over its seeds, with intervals over seeds and prompts."""

    settings: dict[str, str]
    """Axis key → value, without the seed."""
    seeds: int
    win_rate: Interval
    """Against the initial policy."""
    controlled: Interval
    """The same at equal length."""
    second: Interval
    """The same as the second judge sees it; NaN without one."""
    kl: Interval
    """To the initial policy, nats per response."""


def averages(results: list[Result], second: Mapping[str, Array]) -> list[Average]:
    """Return the mean of every setting that finished with several seeds, in the order of the cells.

    Args:
        results: The finished cells.
        second: Cell → (n,) win rates by prompt as the second judge sees them.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        settings = {k: v for k, v in result.cell.settings.items() if k != "seed"}
        groups.setdefault(json.dumps(settings), []).append(result)
    return [
        _average(json.loads(settings), group, second)
        for settings, group in groups.items()
        if len({r.cell.config.seed for r in group}) == len(group) > 1
    ]


def _average(settings: dict[str, str], group: list[Result], second: Mapping[str, Array]) -> Average:
    wins = [SeedValues(r.held_out, r.wins) for r in group]
    seen = [SeedValues(r.held_out, second[r.cell.name]) for r in group if r.cell.name in second]
    return Average(
        settings,
        len(group),
        win_rate=interval_of(wins, "rate"),
        controlled=equal_length_interval_of(wins, [r.extra_tokens for r in group]),
        second=interval_of(seen, "rate") if len(seen) == len(group) else NOWHERE,
        kl=interval_of([SeedValues(r.held_out, r.nats) for r in group], "mean"),
    )
