"""Bootstrap and length control: known answers, symmetries, coverage of nothing but the prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from comal_fast.statistics import (
    bootstrap_mean,
    bootstrap_means,
    length_controlled,
)


def test_bootstrap_of_a_known_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)
    found = bootstrap_mean(values, 4000, 0)
    half = 1.96 * 0.5 / np.sqrt(400)
    assert found["mean"] == 0.5
    assert found["ci95"] == pytest.approx([0.5 - half, 0.5 + half], abs=0.006)


def test_columns_are_resampled_together() -> None:
    """The difference of a column and its shifted copy has no spread at all."""
    values = np.random.default_rng(0).uniform(size=50)
    means = bootstrap_means(np.stack([values, values + 0.1], axis=1), 2500, 1)
    assert means.shape == (2500, 2) and means[:, 0].std() > 0.01
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.1, atol=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(-3, 3))
def test_length_control_recovers_the_intercept(seed: int, quality: float, taste: float) -> None:
    extra = np.random.default_rng(seed).normal(5, 20, 80)
    wins = expit(quality + taste * np.tanh(extra / extra.std()))
    found = length_controlled(wins, extra, 100, 0)
    assert found["mean"] == pytest.approx(expit(quality), abs=5e-3)
    low, high = found["ci95"]
    assert low - 1e-9 <= found["mean"] <= high + 1e-9


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_length_control_is_antisymmetric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wins, extra = rng.uniform(size=40), rng.normal(3, 9, 40)
    ours = length_controlled(wins, extra, 100, 0)
    theirs = length_controlled(1 - wins, -extra, 100, 0)
    assert ours["mean"] == pytest.approx(1 - theirs["mean"], abs=1e-6)
    assert ours["ci95"] == pytest.approx([1 - x for x in theirs["ci95"][::-1]], abs=1e-6)


def test_length_control_without_lengths_is_the_win_rate() -> None:
    wins = np.random.default_rng(3).uniform(size=60)
    found = length_controlled(wins, np.full(60, 7.0), 200, 0)
    assert found["mean"] == pytest.approx(wins.mean(), abs=1e-3)


def test_a_preference_for_length_alone_leaves_half() -> None:
    """Always longer by about the same, preferred for that: raw far above ½, controlled not."""
    rng = np.random.default_rng(0)
    extra = rng.normal(10, 10, 400)
    wins = expit(2.5 * np.tanh(extra / extra.std()) + rng.normal(0, 0.3, 400))
    found = length_controlled(wins, extra, 400, 0)
    assert wins.mean() > 0.7
    assert found["mean"] == pytest.approx(0.5, abs=0.03)
    assert found["ci95"][0] < 0.5 < found["ci95"][1]


def test_a_clean_sweep_stays_finite() -> None:
    found = length_controlled(np.ones(30), np.arange(30.0), 100, 0)
    assert 0.9 < found["mean"] < 1 and np.isfinite(logit(found["mean"]))
