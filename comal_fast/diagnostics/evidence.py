"""A finding, and the bounds that it rests on.

A run makes many tests: every check looks at every evaluated iterate, and some look at several
opponents. So each check spends an error of `RUN_ERROR` over the whole run, in equal parts
(Bonferroni): a healthy run of any length is warned falsely by one check with at most that
probability. docs/diagnostics.md has the rates, by simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from comal_fast.diagnostics.history import Array, History
from comal_fast.statistics import LEAST_PROMPTS, Interval, mean_interval, rate_interval

RUN_ERROR = 0.05
"""Share of healthy runs that one check may warn about."""


@dataclass(frozen=True)
class Finding:
    """One or two sentences for people, and the numbers behind them."""

    text: str
    evidence: dict[str, Any]


def level_of(history: History, num_tests: int = 1) -> float:
    """Return the level of an interval whose one end is tested at every evaluated iterate.

    Args:
        history: The run, which says how many iterates it will evaluate.
        num_tests: Tests that the check makes at each iterate.
    """
    return 1 - 2 * RUN_ERROR / (history.num_evaluations * num_tests)


def bound_rate(values: Array, level: float) -> Interval:
    """Return the interval of the mean of rates in [0, 1]; unbounded for fewer than ten prompts."""
    return _unbounded(values) if len(values) < LEAST_PROMPTS else rate_interval(values, level)


def bound_mean(values: Array, level: float) -> Interval:
    """Return the interval of the mean of any values; unbounded for fewer than ten prompts."""
    return _unbounded(values) if len(values) < LEAST_PROMPTS else mean_interval(values, level)


def allow_for_undrawn(low: float, num_prompts: int, level: float) -> float:
    """Return a lower bound of a KL, in nats per response, that responses not drawn can't undercut.

    Responses with a probability of u together are all missed by n prompts with a probability of at
    most e^{−un}. They add u log u or more to the KL, as all of their mass in the reference does.

    Args:
        low: Lower bound from the mean of log-ratios of the responses that were drawn.
        num_prompts: n.
        level: Of the interval whose lower end it is.
    """
    missed = min(-math.log((1 - level) / 2) / num_prompts, math.exp(-1))
    return (1 - missed) * low + missed * math.log(missed)


def bound_regularised(rates: Array, divergences: Array, level: float) -> Interval:
    """Return an interval of the mean of rates plus weighted log-ratios, one of each per prompt.

    Near-deterministic policies draw one response on every prompt, and the log-ratios of what was
    not drawn are missing: the values agree by chance, and their spread says nothing. So the ends
    are the outer ones of the sum's interval and of that of the rates, shifted by the other mean.
    """
    both, alone = bound_mean(rates + divergences, level), bound_rate(rates, level)
    shift = float(divergences.mean())
    return Interval(both.mean, min(both.low, alone.low + shift), max(both.high, alone.high + shift))


def _unbounded(values: Array) -> Interval:
    mean = float(values.mean()) if len(values) else math.nan
    return Interval(mean, -math.inf, math.inf)
