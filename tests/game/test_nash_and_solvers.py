"""Properties on any game: Nash unbeatable, iterates on the simplex, KL to Nash never rises."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.game import (
    SOLVERS,
    comal,
    duality_gap,
    has_strict_cycle,
    inpo,
    ipo,
    is_falling,
    is_unique,
    kl_divergence,
    nash_policy,
    strict_cycle,
)

quick = settings(max_examples=50, deadline=None)


def matrix_of(seed: int, n: int, kind: str = "dense") -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = {
        "dense": lambda: rng.random((n, n)),
        "tenths": lambda: rng.integers(0, 11, (n, n)) / 10,  # many ties and degenerate vertices
        "tournament": lambda: rng.integers(0, 3, (n, n)) / 2,  # 0, ½, 1: often no unique Nash
        "almost tied": lambda: 0.5 + 1e-6 * rng.normal(size=(n, n)),
        "one dominates": lambda: np.where(np.arange(n)[:, None] == 0, 0.9, rng.random((n, n))),
    }[kind]()
    upper = np.triu(p - 0.5, 1)
    return 0.5 + upper - upper.T


KINDS = ("dense", "tenths", "tournament", "almost tied", "one dominates")
games = st.builds(matrix_of, st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from(KINDS))


@quick
@given(games)
def test_no_response_beats_the_nash(p):
    nash = nash_policy(p)
    assert nash.min() >= 0 and nash.sum() == pytest.approx(1, abs=1e-14)
    assert (p @ nash).max() - 0.5 <= 1e-12
    assert duality_gap(p, nash) <= 1e-12


@quick
@given(games, st.integers(0, 2**32 - 1))
def test_comal_never_moves_away_from_the_nash(p, seed):
    start = np.random.default_rng(seed).dirichlet(np.ones(len(p)))
    trajectory = comal(p, start, outer=8)
    np.testing.assert_allclose(trajectory.policies.sum(axis=1), 1, atol=1e-13)
    assert is_falling(kl_divergence(nash_policy(p), trajectory.log_policies))


@quick
@given(games, st.sampled_from(sorted(SOLVERS)), st.floats(1e-4, 1e3))
def test_every_solver_stays_on_the_simplex(p, name, eta):
    options = {"eta": eta, "tau": eta / 3, "outer": 20, "inner": 5}
    taken = inspect.signature(SOLVERS[name]).parameters
    options = {key: value for key, value in options.items() if key in taken}
    trajectory = SOLVERS[name](p, **options)
    assert not np.isnan(trajectory.log_policies).any()
    np.testing.assert_allclose(trajectory.policies.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_responses(kind):
    p = matrix_of(7, 200, kind)
    nash = nash_policy(p)
    assert duality_gap(p, nash) <= 1e-9
    kl = kl_divergence(nash, comal(p, outer=10).log_policies)
    assert kl.shape == (11,) and is_falling(kl)


def test_large_steps_do_not_underflow():
    p = np.array([[0.5, 1.0], [0.0, 0.5]])
    trajectory = ipo(p, eta=1e-6, outer=1000)
    assert trajectory.policies[-1].tolist() == [1.0, 0.0]
    assert np.isfinite(trajectory.log_policies).all()
    # KL to the losing vertex is a finite number although that policy's probability underflows
    assert kl_divergence([0.0, 1.0], trajectory.log_policies[-1]) > 1e8


def test_boundary_nash():
    p = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])
    nash = nash_policy(p)
    assert nash.tolist() == [1, 0, 0] and is_unique(p, nash)
    trajectory = comal(p, (0.01, 0.5, 0.49))
    kl = kl_divergence(nash, trajectory.log_policies)
    assert (np.diff(kl) < 0).all() and kl[-1] < 1e-12


def test_a_zero_of_the_start_under_the_nash_is_infinite_not_nan():
    p = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])
    for tau in (0.5, 2.0):  # tau = eta gives the last policy the exponent 0
        trajectory = comal(p, (0.0, 0.4, 0.6), eta=2.0, tau=tau, outer=3)
        assert not np.isnan(trajectory.log_policies).any()
        assert np.isinf(kl_divergence(nash_policy(p), trajectory.log_policies)).all()
        assert (trajectory.policies[:, 0] == 0).all()


def test_a_zero_outside_the_nash_is_harmless():
    p = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]])
    kl = kl_divergence([1.0, 0.0, 0.0], comal(p, (0.3, 0.0, 0.7), outer=3).log_policies)
    assert kl[0] == pytest.approx(-np.log(0.3)) and (np.diff(kl) < 0).all()


def test_non_unique_nash():
    ties = np.full((4, 4), 0.5)
    assert duality_gap(ties, nash_policy(ties)) == 0 and not is_unique(ties, nash_policy(ties))
    twins = np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]])
    nash = nash_policy(twins)
    assert duality_gap(twins, nash) == 0 and nash[2] == 0 and not is_unique(twins, nash)


def test_kl_agrees_with_the_definition_and_keeps_small_values():
    rng = np.random.default_rng(1)
    t, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6), size=5)
    np.testing.assert_allclose(
        kl_divergence(t, np.log(q)), (t * np.log(t / q)).sum(axis=1), rtol=1e-12
    )
    t, d = np.array([0.5, 0.5]), 1e-10
    near = np.log(np.array([0.5 + d / 2, 0.5 - d / 2]))
    assert kl_divergence(t, near) == pytest.approx(d**2 / 2, rel=1e-5)


def test_duality_gap_by_hand():
    p = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
    assert duality_gap(p, [0.2, 0.5, 0.3]) == pytest.approx(0.28, abs=1e-15)
    assert duality_gap(p, [1.0, 0, 0]) == pytest.approx(0.8)
    assert duality_gap(p, [[1.0, 0, 0], [0, 1.0, 0]]).shape == (2,)


def test_inpo_reference_is_static_and_comal_moves_it():
    p = matrix_of(3, 5)
    one = comal(p, outer=1, inner=9).log_policies[-1]
    assert np.array_equal(one, inpo(p, outer=1, inner=9).log_policies[-1])
    again = comal(p, np.exp(one), outer=1, inner=9).policies[-1]
    np.testing.assert_allclose(comal(p, outer=2, inner=9).policies[-1], again, rtol=1e-12)
    np.testing.assert_array_equal(
        inpo(p, outer=2, inner=9).log_policies[-1], inpo(p, outer=1, inner=18).log_policies[-1]
    )


def brute_force_cycle(p: np.ndarray) -> bool:
    reach = p > 0.5 + 1e-9
    for k in range(len(p)):
        reach = reach | (reach[:, [k]] & reach[[k], :])
    return bool(reach.diagonal().any())


@settings(max_examples=200, deadline=None)
@given(games)
def test_cycle_agrees_with_transitive_closure(p):
    names = [f"r{i}" for i in range(len(p))]
    cycle = strict_cycle(p, names)
    assert has_strict_cycle(p) == brute_force_cycle(p) == (cycle is not None)
    if cycle is not None:
        nodes = [names.index(name) for name in cycle]
        assert len(nodes) >= 3 and len(set(nodes)) == len(nodes)
        assert all(p[i, j] > 0.5 for i, j in zip(nodes, nodes[1:] + nodes[:1], strict=True))


def test_a_bradley_terry_matrix_has_no_cycle():
    r = np.random.default_rng(0).normal(size=40)
    p = 1 / (1 + np.exp(r[None] - r[:, None]))
    assert not has_strict_cycle(p) and not has_strict_cycle(p.astype(np.float32))
    assert not has_strict_cycle(np.full((3, 3), 0.5))


def test_cycle_errors():
    with pytest.raises(ValueError, match="square"):
        has_strict_cycle(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        has_strict_cycle(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="names"):
        strict_cycle(np.full((2, 2), 0.5), ["a"])


def test_the_game_needs_neither_torch_nor_transformers_nor_matplotlib():
    code = (
        "import sys, comal_fast.game, comal_fast.game.command;"
        "bad = {'torch', 'transformers', 'matplotlib', 'scipy.optimize'} & set(sys.modules);"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
