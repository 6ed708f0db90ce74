"""Values per prompt whose mean is the win rate at equal length."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from comal_fast.statistics import length_controlled
from comal_fast.statistics.equal_length import equal_length_values


def test_they_have_its_mean_and_the_spread_of_the_jackknife() -> None:
    rng, n = np.random.default_rng(0), 120
    extra = rng.normal(5, 10, n)
    wins = np.clip(expit(0.3 + np.tanh(extra / 10)) + rng.normal(0, 0.2, n), 0, 1)
    found = equal_length_values(wins, extra)
    assert found.mean() == pytest.approx(length_controlled(wins, extra)["mean"])
    left_out = [
        equal_length_values(np.delete(wins, i), np.delete(extra, i)).mean() for i in range(n)
    ]
    jackknife = (n - 1) * np.std(left_out) / np.sqrt(n - 1)
    assert found.std(ddof=1) / np.sqrt(n) == pytest.approx(jackknife, rel=0.1)


def test_equal_lengths_leave_the_wins_and_lengths_apart_leave_nothing() -> None:
    wins = np.random.default_rng(1).random(20)
    np.testing.assert_array_equal(equal_length_values(wins, np.zeros(20)), wins)
    assert np.isnan(equal_length_values(wins, np.arange(1.0, 21))).all()
    assert np.isfinite(equal_length_values(np.ones(20), np.arange(20.0) - 10)).all()
