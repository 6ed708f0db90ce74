"""The small version of `make coverage`, and proof that it finds an interval that fails."""

from __future__ import annotations

import numpy as np
import pytest

from comal_fast.statistics import bootstrap_interval
from coverage_suite import Row, load_rows, measure_coverage

REPLICATIONS, OF_MANY_PROMPTS = 80, 30
ERRORS = 3.5  # of the binomial distribution, by which a row may miss its bounds


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.name)
def test_interval_covers(row: Row) -> None:
    found = measure_coverage(row, REPLICATIONS if row.n < 100 else OF_MANY_PROMPTS, 0)
    least, most = row.limits
    assert found.is_within(ERRORS), f"{found.share:.1%}, {least:.1%} to {most:.1%} asked for"


def test_the_suite_finds_an_interval_that_does_not_cover() -> None:
    """The percentile bootstrap of ten 0/1 outcomes misses a truth of .93 every other time."""

    def draw(generator: np.random.Generator) -> tuple[float, float, float]:
        wins = (generator.random(10) < 0.93).astype(float)
        return *bootstrap_interval(wins, 500, 0), 0.93

    found = measure_coverage(Row("percentile", "0/1", 10, 0.93, draw), REPLICATIONS, 0)
    assert found.share < 0.7 and not found.is_within(ERRORS)


def test_rows_do_not_depend_on_their_order() -> None:
    def draw(generator: np.random.Generator) -> tuple[float, float, float]:
        mean = generator.normal()
        return mean - 1, mean + 1, 0.0

    row, other = (Row("mean", data, 10, 0.0, draw) for data in ("a", "b"))
    first = measure_coverage(row, 100, 3)
    measure_coverage(other, 100, 3)
    assert measure_coverage(row, 100, 3) == first
    assert measure_coverage(row, 100, 4) != first
