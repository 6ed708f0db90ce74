"""Ψ(P) in place of P: what a vote keeps, and what it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.cli import main
from comal_fast.game import nash_policy, paper_game
from comal_fast.game.families import bradley_terry_game
from comal_fast.game.nash import smith_set
from comal_fast.game.payoffs import PAYOFFS, with_payoff
from comal_fast.game.preference import Game, default_names


def drawn(seed: int, n: int) -> Game:
    upper = np.triu(np.random.default_rng(seed).uniform(-0.45, 0.45, (n, n)), 1)
    return Game(0.5 + upper - upper.T, default_names(n))


def smith_by_search(matrix: np.ndarray) -> list[int]:
    """The smallest of all subsets that beat the rest."""
    n = len(matrix)
    found = []
    for mask in range(1, 2**n):
        inside = [i for i in range(n) if mask >> i & 1]
        rest = [i for i in range(n) if not mask >> i & 1]
        if (matrix[np.ix_(inside, rest)] > 0.5 + 1e-9).all():
            found.append(inside)
    return min(found, key=len)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.booleans())
@settings(max_examples=60, deadline=None)
def test_smith_set(seed, n, ties):
    matrix = drawn(seed, n).matrix
    if ties:
        matrix = np.round(2 * matrix) / 2 if seed % 2 else np.round(4 * matrix) / 4
    assert smith_set(matrix) == smith_by_search(matrix)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.sampled_from(sorted(PAYOFFS)))
@settings(max_examples=80, deadline=None)
def test_what_is_played_lies_in_the_smith_set(seed, n, name):
    """arXiv 2505.20627: Ψ(t) + Ψ(1 − t) = 1 and Ψ(t) > ½ for t > ½ are enough."""
    preferences = drawn(seed, n)
    played = with_payoff(preferences, name).matrix
    np.testing.assert_allclose(played + played.T, 1, atol=1e-15)
    assert (np.sign(np.round(played - 0.5, 12)) == np.sign(preferences.matrix - 0.5)).all()
    nash = nash_policy(played)
    inside = smith_set(preferences.matrix)
    assert nash[inside].sum() == pytest.approx(1, abs=1e-9)
    if len(inside) == 1:  # a Condorcet winner
        assert nash[inside[0]] == pytest.approx(1, abs=1e-9)


def test_logit_gives_bradley_terry_its_rewards():
    preferences = bradley_terry_game(5, 2)
    margins = with_payoff(preferences, "logit").matrix - 0.5
    np.testing.assert_allclose(margins[0] - margins[1], (margins[0] - margins[1])[0], atol=1e-12)
    assert np.abs(margins).max() == pytest.approx(0.5)


def test_majority_forgets_margins():
    played = with_payoff(paper_game(), "majority")
    np.testing.assert_allclose(nash_policy(played.matrix), 1 / 3, atol=1e-12)


def test_bad_payoffs(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"payoff = 'sum': it must be one of preference, root"):
        with_payoff(paper_game(), "sum")
    sure = Game(np.array([[0.5, 1.0], [0.0, 0.5]]), ("a", "b"))
    with pytest.raises(ValueError, match="has infinite odds; take majority"):
        with_payoff(sure, "logit")
    monkeypatch.chdir(tmp_path)
    assert main(["game", "--study", "2", "--payoff", "root"]) == 2
    assert "--payoff has no effect with --study" in capsys.readouterr().err
    words = ["--payoff", "majority", "--outer", "2", "--inner", "3", "--start", "0.2,0.5,0.3"]
    assert main(["game", *words]) == 0
    out = capsys.readouterr().out
    assert "payoff majority" in out and "0.333333" in out
