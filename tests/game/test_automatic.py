"""`eta: auto`: COMAL chooses η, τ and its reference moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.game import PAPER_START, comal, duality_gap, is_falling, kl_divergence, nash_policy
from comal_fast.game.compare import Entry, calls_to_converge, fixed_settings
from comal_fast.game.families import (
    blotto_game,
    bradley_terry_game,
    cyclic_game,
    random_game,
)
from comal_fast.game.preference import paper_game
from comal_fast.game.study import Result, against_fixed, run_study, study_games

GAME = paper_game()


def calls(game, outer: int = 200, inner: int = 50) -> int | None:
    t = comal(game.matrix, eta="auto", outer=outer, inner=inner)
    return calls_to_converge(duality_gap(game.matrix, t.policies), t.calls)


def test_the_papers_game_takes_an_eighth_of_the_calls():
    t = comal(GAME.matrix, PAPER_START, eta="auto", outer=200, inner=10)
    gap = duality_gap(GAME.matrix, t.policies)
    assert calls_to_converge(gap, t.calls) <= 101  # 851 with the paper's setting
    assert t.calls[-1] == t.steps[-1] + 1 == 2001
    assert is_falling(kl_divergence(nash_policy(GAME.matrix), t.log_policies[:8]))
    assert gap[-1] < 1e-14


@pytest.mark.parametrize("make", [random_game, cyclic_game, bradley_terry_game, blotto_game])
@pytest.mark.parametrize("size", [3, 10])
def test_it_solves_every_family(make, size):
    for seed in range(3):
        assert calls(make(size, seed)) is not None, seed


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0])
def test_the_payoff_range_does_not_matter(scale):
    """Iterates of a game with all margins scaled are the same: η and τ scale with them."""
    game = random_game(6, 4)
    full = comal(game.matrix, eta="auto", outer=20, inner=10)
    scaled = comal(0.5 + scale * (game.matrix - 0.5), eta="auto", outer=20, inner=10)
    np.testing.assert_allclose(scaled.policies, full.policies, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_iterates_stay_policies(seed, n):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.choice([-0.5, -0.1, 0.0, 0.3, 0.5], (n, n)), 1)
    start = rng.dirichlet(np.ones(n)) * (rng.random(n) > 0.2)
    start = np.full(n, 1 / n) if start.sum() == 0 else start / start.sum()
    t = comal(0.5 + upper - upper.T, start, eta="auto", outer=20, inner=10)
    assert np.isfinite(t.policies).all()
    np.testing.assert_allclose(t.policies.sum(axis=-1), 1, atol=1e-12)
    assert (t.policies[:, start == 0] == 0).all()


def test_games_of_a_batch_do_not_see_each_other():
    games = [random_game(5, 1), cyclic_game(5, 2)]
    together = comal(np.stack([g.matrix for g in games]), eta="auto", outer=30, inner=10)
    for g, game in enumerate(games):
        alone = comal(game.matrix, eta="auto", outer=30, inner=10)
        np.testing.assert_allclose(together.policies[:, g], alone.policies, atol=1e-9)


def test_ties_everywhere_leave_the_start():
    t = comal(np.full((3, 3), 0.5), PAPER_START, eta="auto", outer=2, inner=3)
    np.testing.assert_allclose(t.policies, np.tile(PAPER_START, (3, 1)), atol=1e-15)


def test_within_twice_the_best_fixed_settings_calls_on_games_not_seen():
    """A sample of docs/games.md's hundred games, on which the shares are 98 and 95 %."""
    games = [game for game in study_games(100, 1000)[::3] if len(game.names) <= 20]
    results = run_study(games, fixed_settings(40, 100))
    chosen = against_fixed(results)
    assert chosen.games >= 10 and chosen.within_best >= 0.8 and chosen.within_each >= 0.8


def result(label: str, *spent: int | None) -> Result:
    return Result(label, "comal", {}, [], [], list(spent), [], [], [])


def test_the_best_setting_is_the_one_that_solves_most():
    auto = result("auto", 10, 30, None, None, 5)
    many, fast = result("many", 8, 20, 50, None, None), result("fast", 2, 10, None, None, None)
    chosen = against_fixed([auto, many, fast])
    assert (chosen.games, chosen.best) == (4, "many")  # one that nothing solves does not count
    assert chosen.within_best == 3 / 4  # 10 ≤ 16, 30 ≤ 40, none > 100, 5 ≤ ∞
    assert chosen.within_each == 1 / 4  # 10 > 4, 30 > 20


def test_entries_are_labelled_by_their_settings():
    entries = fixed_settings(3, 4)
    assert entries[0] == Entry(
        "COMAL auto", "comal", {"eta": "auto", "tau": 0.05, "outer": 3, "inner": 4}
    )
    assert len({entry.label for entry in entries}) == len(entries) == 20
