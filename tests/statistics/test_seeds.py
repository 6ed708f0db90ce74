"""Intervals over seeds: against Student's and the analysis of variance, and as rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t, ttest_ind

from comal_fast.statistics.seeds import half_width, interval_over_seeds, variance_over_seeds


def as_runs(values: np.ndarray) -> list[dict[int, float]]:
    """One run per row, on the same prompts."""
    return [dict(enumerate(row)) for row in values]


def test_prompts_of_their_own_give_students_interval() -> None:
    rng = np.random.default_rng(0)
    runs = [{(seed, i): rng.normal() for i in range(20)} for seed in range(4)]
    means = np.array([np.mean(list(run.values())) for run in runs])
    found = interval_over_seeds(runs)
    half = t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert found.mean == pytest.approx(means.mean())
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half))


def test_two_settings_that_share_nothing_give_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    one = [{(0, seed, i): rng.normal() for i in range(9)} for seed in range(3)]
    other = [{(1, seed, i): 3 * rng.normal() for i in range(9)} for seed in range(5)]
    means = [[np.mean(list(run.values())) for run in group] for group in (one, other)]
    wanted = ttest_ind(*means, equal_var=False).confidence_interval(0.95)
    found = interval_over_seeds(one, minus=other)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_all_prompts_shared_gives_the_mean_squares_of_a_crossed_design() -> None:
    rng, seeds, prompts = np.random.default_rng(2), 4, 30
    values = rng.normal(size=(seeds, 1)) + rng.normal(size=prompts)
    values = values + rng.normal(size=(seeds, prompts))
    by_seed, by_prompt = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_prompt + values.mean()
    seed_square = prompts * by_seed.var(ddof=1)
    prompt_square = seeds * by_prompt.var(ddof=1)
    rest_square = (rest**2).sum() / ((seeds - 1) * (prompts - 1))
    found = variance_over_seeds(as_runs(values))
    assert found.seeds == pytest.approx(seed_square / (seeds * prompts))
    assert found.shared == pytest.approx((prompt_square - rest_square) / (seeds * prompts))
    assert (found.num_shared, found.num_prompts) == (prompts, prompts)


def test_what_two_settings_share_cancels_in_their_difference() -> None:
    """Prompts differ a lot, in both settings alike: the difference does not feel it."""
    rng = np.random.default_rng(3)
    prompts = 5 * rng.normal(size=40)
    one, other = (as_runs(prompts + 0.1 * rng.normal(size=(3, 40))) for _ in range(2))
    mean, difference = interval_over_seeds(one), interval_over_seeds(one, minus=other)
    assert mean.high - mean.low > 2
    assert difference.high - difference.low < 0.2
    assert difference.low < 0 < difference.high


def test_never_narrower_than_students() -> None:
    for shared in (0.0, 0.5, 50.0):
        assert half_width(2.0, 2, shared, 100) >= t.ppf(0.975, 2) * np.sqrt(2)
    assert half_width(0.0, 2, 0.0, 100) == 0


def test_a_rate_stays_within_its_bounds_and_never_shrinks_to_a_point() -> None:
    always = as_runs(np.ones((3, 10)))
    found = interval_over_seeds(always, is_rate=True)
    assert found.mean == found.high == 1 and 0.6 < found.low < 0.8
    assert not np.isfinite(interval_over_seeds([{0: np.nan}, {0: 1.0}]).mean)
