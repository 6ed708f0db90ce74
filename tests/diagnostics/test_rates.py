"""The small version of `make diagnostics`: how often diagnostics fire in simulated runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from run_kinds import KINDS, MANY, Rates, measure_rates
from simulated_runs import Run, simulate, true_inner_gap

RUNS = 20
ERRORS = 3.5  # of the binomial distribution, by which a rate may miss what is asked of it


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_a_kind_of_runs(kind: str) -> None:
    rates = measure_rates(kind, MANY, RUNS, 1)
    assert rates.misses(ERRORS) == [], rates.fired


def test_a_check_that_alarms_too_often_or_finds_too_little_is_seen() -> None:
    """The loss to any earlier iterate, which fired in 19 of 20 healthy runs, would not pass."""
    healthy = Rates("healthy COMAL, step by step", MANY, RUNS, Counter(degradation=19))
    assert healthy.misses(ERRORS) == ["degradation"]
    assert Rates("outward spiral", MANY, RUNS, Counter(cycling=7)).misses(ERRORS) == ["cycling"]
    assert Rates("outward spiral", 56, RUNS, Counter(cycling=7)).misses(ERRORS) == []
    both = measure_rates("stuck", 56, 2, 0) + measure_rates("stuck", 56, 3, 1)
    assert both.runs == 5 and both.fired["slow_convergence"] >= 3


def test_simulated_measurements_have_the_exact_means() -> None:
    """Win rates, KLs and the variance of win rates, over many prompts."""
    rng = np.random.default_rng(0)
    run: Run = KINDS["healthy COMAL, step by step"].make(rng)
    *_, history = simulate(run, 20_000, rng)
    policies, matrix = np.exp(run.log_policies[:, 0]), run.matrices[0]
    now = history.current
    assert now is not None and true_inner_gap(run, 18) >= 0
    for earlier, wins in now.wins.items():
        exact = policies[18] @ matrix @ policies[earlier]
        assert wins.mean() == pytest.approx(exact, abs=5 * 0.5 / np.sqrt(20_000))
    kl = policies[18] @ (run.log_policies[18, 0] - run.log_policies[0, 0])
    spread = now.kl_to_initial.std() / np.sqrt(20_000)
    assert now.kl_to_initial.mean() == pytest.approx(kl, abs=5 * spread)
