"""Intervals of means over clusters of unequal size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from comal_fast.statistics.clustered import clustered_mean


def test_one_value_a_cluster_gives_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=25)
    found = clustered_mean(values, np.arange(25))
    half = t.ppf(0.975, 24) * values.std(ddof=1) / 5
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_repeated_values_are_no_news() -> None:
    """Every value six times over: the interval is that of the values taken once."""
    values = np.random.default_rng(1).random(30)
    once = clustered_mean(values, np.arange(30), is_rate=True)
    often = clustered_mean(np.repeat(values, 6), np.repeat(np.arange(30), 6), is_rate=True)
    assert (often.low, often.mean, often.high) == pytest.approx((once.low, once.mean, once.high))


def test_one_cluster_shows_nothing() -> None:
    found = clustered_mean(np.array([0.0, 1.0]), np.zeros(2, dtype=int), is_rate=True)
    assert (found.low, found.mean, found.high) == (0, 0.5, 1)
    assert math.isnan(clustered_mean(np.array([3.0]), np.zeros(1, dtype=int)).low)


def test_a_rate_of_independent_draws_has_wilsons_interval() -> None:
    """The rates that a score test with the binomial variance does not reject."""
    n, rate = 400, 0.3
    values = (np.arange(n) < rate * n).astype(float)
    found = clustered_mean(values, np.arange(n), is_rate=True)
    for end in (found.low, found.high):
        error = math.sqrt(end * (1 - end) / n)
        assert abs(rate - end) == pytest.approx(t.ppf(0.975, n - 1) * error, rel=5e-3)
