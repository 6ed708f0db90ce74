"""What a setting wins over the seeds: cells that differ in their seed alone, taken together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from comal_fast.statistics import NOWHERE, Interval
from comal_fast.sweep.effects import of_seeds
from comal_fast.sweep.results import Result


@dataclass(frozen=True)
class Average:
    """A setting's mean over its seeds, with Student's intervals over them."""

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


def averages(results: list[Result], second: Mapping[str, Interval]) -> list[Average]:
    """Of every setting that finished with two seeds or more, in the order of the cells.

    `second`: cell → win rate as the second judge sees it.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        settings = {k: v for k, v in result.cell.settings.items() if k != "seed"}
        groups.setdefault(json.dumps(settings), []).append(result)
    return [
        Average(
            json.loads(settings),
            len(group),
            _mean([r.win_rate for r in group]),
            _mean([r.controlled for r in group]),
            _mean([second.get(r.cell.name, NOWHERE) for r in group]),
            _mean([r.kl for r in group]),
        )
        for settings, group in groups.items()
        if len({r.cell.config.seed for r in group}) == len(group) > 1
    ]


def _mean(values: list[Interval]) -> Interval:
    return of_seeds(np.array([value.mean for value in values]), 0.95)
