"""Values per prompt whose mean is a measure, and the measure's interval over prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from comal_fast.statistics import NOWHERE, Array, Interval, length_controlled, to_interval
from comal_fast.statistics.equal_length import equal_length_values
from comal_fast.statistics.means import difference_interval, mean_interval, rate_interval
from comal_fast.statistics.seeds import interval_over_seeds

Kind = Literal["rate", "difference", "mean"]
"""Values in [0, 1], differences of two such values, or values of any range."""


@dataclass(frozen=True)
class SeedValues:
    """What one seed measured: a value per held-out prompt."""

    held_out: Sequence[Hashable]
    """(n,) the prompts' identities."""
    values: Array
    """(n,)."""


def pseudo_values(measure: Callable[[Array], Array], table: Array) -> Array:
    """Return the jackknife's pseudo-values of a function of means (Tukey, 1958).

    They are n f(all) − (n − 1) f(all but prompt i), moved so that their mean is f(all). Of a linear
    function they are the prompts' own values.

    Args:
        measure: Maps (m, k) means to (m,) values.
        table: (n, k) values of each prompt.
    """
    n, mean = len(table), table.mean(axis=0, keepdims=True)
    whole = measure(mean)
    if n < 2:
        return whole
    values = n * whole - (n - 1) * measure((n * mean - table) / (n - 1))
    return np.asarray(values - values.mean() + whole)


def interval_of(seeds: Sequence[SeedValues], kind: Kind, level: float = 0.95) -> Interval:
    """Return the mean over seeds and prompts with its interval.

    Of one seed it covers the choice of prompts alone. Of several it covers that of seeds too, and
    takes into account which prompts they share.

    Args:
        seeds: One or more.
        kind: What the values are.
        level: Of the interval.

    Returns:
        The interval; NaN where a value is not finite.
    """
    if len(seeds) > 1:
        runs = [dict(zip(s.held_out, s.values, strict=True)) for s in seeds]
        return interval_over_seeds(runs, level=level, is_rate=kind == "rate")
    values = seeds[0].values
    if not np.isfinite(values).all():
        return NOWHERE
    if kind == "rate":
        return rate_interval(values, level)
    if kind == "difference":
        return difference_interval(values, np.zeros_like(values), level)
    return mean_interval(values, level)


def equal_length_interval_of(wins: Sequence[SeedValues], extra_tokens: Sequence[Array]) -> Interval:
    """Return the win rate at equal length over prompts and seeds; NaN if one is not comparable.

    Args:
        wins: One or more seeds' win rates.
        extra_tokens: Per seed, how many tokens longer the winner's responses are on each prompt.
    """
    if len(wins) == 1:
        return to_interval(length_controlled(wins[0].values, extra_tokens[0])) or NOWHERE
    values = [
        equal_length_values(seed.values, extra)
        for seed, extra in zip(wins, extra_tokens, strict=True)
    ]
    return interval_of(
        [SeedValues(s.held_out, v) for s, v in zip(wins, values, strict=True)], "rate"
    )
