"""Intervals and length control: known answers, symmetries, edge cases. Coverage: tests/coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, ttest_1samp

from comal_fast.statistics import (
    Interval,
    best_opponent_bounds,
    bootstrap_interval,
    bootstrap_means,
    difference_interval,
    length_controlled,
    mean_interval,
    rate_interval,
    to_interval,
    to_json,
)
from comal_fast.statistics.equal_length import comparable_share, equal_length_interval
from comal_fast.statistics.maximum import _largest_quantile


def test_bootstrap_of_a_known_mean() -> None:
    values = np.repeat([0.0, 1.0], 200)
    half = 1.96 * 0.5 / np.sqrt(400)
    assert bootstrap_interval(values, 4000, 0) == pytest.approx([0.5 - half, 0.5 + half], abs=0.006)


def test_columns_are_resampled_together() -> None:
    """The difference of a column and its shifted copy has no spread at all."""
    values = np.random.default_rng(0).uniform(size=50)
    means = bootstrap_means(np.stack([values, values + 0.1], axis=1), 2500, 1)
    assert means.shape == (2500, 2) and means[:, 0].std() > 0.01
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.1, atol=1e-12)


@pytest.mark.parametrize("wins", [300, 570, 600])
def test_a_rate_of_many_verdicts_has_wilsons_interval(wins: int) -> None:
    found = rate_interval(np.repeat([1.0, 0.0], [wins, 600 - wins]))
    ends = binomtest(wins, 600).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=5e-4)


def test_a_mean_without_skewness_has_students_interval() -> None:
    values = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) + 7
    found, ends = mean_interval(values), ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_a_skewed_mean_reaches_further_on_its_long_side() -> None:
    values = np.random.default_rng(0).exponential(1, 20)
    found, ends = mean_interval(values), ttest_1samp(values, 0).confidence_interval()
    assert found.low == pytest.approx(ends.low) and found.high > ends.high + 0.05


rates = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@given(rates, st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_a_rate_lies_in_its_interval_and_that_in_0_to_1(values: np.ndarray, level: float) -> None:
    found, mirrored = rate_interval(values, level), rate_interval(1 - values, level)
    assert 0 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))
    narrow = rate_interval(values, level / 2)
    assert found.low <= narrow.low + 1e-12 and narrow.high <= found.high + 1e-12


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30).map(np.array))
def test_a_mean_lies_in_its_interval(values: np.ndarray) -> None:
    found = mean_interval(values)
    assert found.low <= found.mean <= found.high


def test_more_responses_a_prompt_are_no_more_prompts() -> None:
    """Copies of a prompt's verdict, averaged, leave the interval as it is."""
    verdicts = (np.random.default_rng(0).random(40) < 0.7).astype(float)
    assert rate_interval(np.tile(verdicts, (16, 1)).mean(axis=0)) == rate_interval(verdicts)


def test_differences_are_paired_by_prompt() -> None:
    generator = np.random.default_rng(0)
    ours, noise = generator.uniform(0.1, 0.9, 200), generator.normal(0, 0.01, 200)
    paired = difference_interval(ours, ours - 0.05 + noise)
    alone = difference_interval(ours, generator.permutation(ours))
    assert paired.mean == pytest.approx(0.05, abs=0.003) and paired.excludes(0)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_one_prompt_says_nothing() -> None:
    assert rate_interval(np.array([0.9])) == Interval(0.9, 0.0, 1.0)
    alone = to_json(mean_interval(np.array([3.0])))
    assert alone == {"mean": 3.0, "ci95": None}
    found = to_interval(alone)
    assert found is not None and np.isnan([found.low, found.high]).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(-3, 3))
def test_length_control_recovers_the_intercept(seed: int, quality: float, taste: float) -> None:
    extra = np.random.default_rng(seed).normal(5, 20, 80)
    wins = expit(quality + taste * np.tanh(extra / extra.std()))
    found = length_controlled(wins, extra)
    assert found["mean"] == pytest.approx(expit(quality), abs=5e-3)
    low, high = found["ci95"]
    assert low - 1e-9 <= found["mean"] <= high + 1e-9


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_length_control_is_antisymmetric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wins, extra = rng.uniform(size=40), rng.normal(3, 9, 40)
    ours, theirs = length_controlled(wins, extra), length_controlled(1 - wins, -extra)
    assert ours["mean"] == pytest.approx(1 - theirs["mean"], abs=1e-6)
    assert ours["ci95"] == pytest.approx([1 - x for x in theirs["ci95"][::-1]], abs=1e-6)


def test_length_control_of_equal_lengths_is_the_win_rate() -> None:
    wins = np.random.default_rng(3).uniform(size=60)
    found = length_controlled(wins, np.zeros(60))
    assert found == {**to_json(rate_interval(wins)), "overlap": 1.0, "note": None}


def test_the_score_test_of_a_flat_length_is_wilsons() -> None:
    """Lengths that do not matter leave the estimate alone, and hardly widen the interval."""
    wins = np.tile([1.0, 1.0, 1.0, 0.0], 50)
    extra = np.repeat([-10.0, 10.0], 100)
    found, plain = equal_length_interval(wins, extra), rate_interval(wins)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (plain.mean, plain.low, plain.high), abs=1e-3
    )


def test_a_preference_for_length_alone_leaves_half() -> None:
    """Always longer by about the same, preferred for that: raw far above ½, controlled not."""
    rng = np.random.default_rng(0)
    extra = rng.normal(10, 10, 400)
    wins = expit(2.5 * np.tanh(extra / extra.std()) + rng.normal(0, 0.3, 400))
    found = length_controlled(wins, extra)
    assert wins.mean() > 0.7
    assert found["mean"] == pytest.approx(0.5, abs=0.03)
    assert found["ci95"][0] < 0.5 < found["ci95"][1]


@pytest.mark.parametrize("extra", [50.0, 50.001, -50.0])
def test_lengths_that_never_overlap_have_no_answer(extra: float) -> None:
    """80 % wins by always longer responses say nothing of equally long ones."""
    wins = np.repeat([1.0, 0.0], [80, 20])
    noise = np.zeros(100) if abs(extra) == 50 else np.random.default_rng(0).normal(0, 0.001, 100)
    found = length_controlled(wins, extra + noise)
    assert found["mean"] is None and found["ci95"] is None and found["overlap"] == 0
    assert found["note"] == "not comparable (0% overlap)"
    assert to_interval(found) is None


def test_the_share_that_is_comparable() -> None:
    assert comparable_share(np.array([1.0, 2.0, 3.0, -9.0])) == 0.5
    assert comparable_share(np.array([0.0, 2.0, 3.0, 4.0])) == 0.25
    extra = np.repeat([-1.0, 1.0], [2, 18])
    assert "20% overlap" in length_controlled(np.full(20, 0.6), extra)["note"]
    assert length_controlled(np.full(9, 0.6), np.zeros(9))["note"] == "too few prompts (9)"


def test_a_clean_sweep_is_one_and_has_an_interval() -> None:
    extra = np.arange(30.0) - 14.5
    found = length_controlled(np.ones(30), extra)
    plain = rate_interval(np.ones(30))
    assert found["mean"] == 1.0
    assert found["ci95"] == pytest.approx([plain.low, 1.0], abs=0.02)
    lost = length_controlled(np.zeros(30), extra)
    assert lost["mean"] == 0.0 and lost["ci95"][0] == 0.0


def test_length_that_decides_every_prompt_leaves_it_open() -> None:
    extra = np.random.default_rng(0).normal(0, 9, 60)
    low, high = length_controlled((extra > 0).astype(float), extra)["ci95"]
    assert low < 0.4 and high > 0.6


def test_bounds_for_the_best_of_one_are_the_rates_own() -> None:
    wins = np.random.default_rng(0).uniform(size=(50, 1))
    low, high = best_opponent_bounds(wins, 200_000, 0)
    plain = rate_interval(wins[:, 0])
    assert (low[0], high[0]) == pytest.approx((plain.low, plain.high), abs=2e-3)


def test_bounds_for_many_use_how_opponents_correlate() -> None:
    """Copies of one opponent are one; independent ones reach Šidák's quantile."""
    from scipy.stats import norm

    generator = np.random.default_rng(0)
    one = generator.uniform(size=(4000, 1))
    copies = _largest_quantile(np.tile(one, 8), 100_000, 0)
    apart = _largest_quantile(generator.uniform(size=(4000, 8)), 100_000, 0)
    assert copies == pytest.approx(norm.ppf(0.975), abs=0.03)
    assert apart == pytest.approx(norm.ppf(0.975 ** (1 / 8)), abs=0.05)
