"""Mixtures of probabilities, and what is checked of every oracle's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from comal_fast.errors import InputError
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import Comparison, Message, Oracle, self_comparison
from comal_fast.oracles.checked import Checked
from comal_fast.oracles.mixture import MixtureOracle

ASKED = (Message("user", "Which?"),)


class Rewards(Oracle):
    """A Bradley–Terry model over responses that are indices."""

    def __init__(self, rewards: Iterable[float]) -> None:
        self.rewards, self.released = np.array(list(rewards)), 0

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        for item in comparisons:
            left, right = (self.rewards[[int(t) for t in s]] for s in (item.left, item.right))
            yield expit(left[:, None] - right[None, :])

    def fingerprint(self) -> str:
        return str(self.rewards)

    def release(self) -> None:
        self.released += 1


class Fixed(Oracle):
    """Says the same whatever it is asked."""

    def __init__(self, matrix: object) -> None:
        self.matrix = np.array(matrix, dtype=float)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        for _ in comparisons:
            yield self.matrix

    def fingerprint(self) -> str:
        return "fixed"


def matrix_of(oracle: Oracle, size: int) -> np.ndarray:
    (matrix,) = oracle.compare([self_comparison(ASKED, [str(i) for i in range(size)])])
    return matrix


rewards = st.lists(st.floats(-6, 6), min_size=5, max_size=5)


@settings(max_examples=300, deadline=None)
@given(rewards, rewards)
def test_equal_weights_of_two_never_cycle(first: list[float], second: list[float]) -> None:
    """σ(a) + σ(b) > 1 exactly where a + b > 0: the sum of both rewards orders the responses."""
    for a, b in ((first, second), (np.round(first), np.round(second))):
        mixture = MixtureOracle([Rewards(a), Rewards(b)], [0.5, 0.5], ["a", "b"])
        assert not has_strict_cycle(matrix_of(mixture, 5))


def test_unequal_weights_cycle() -> None:
    """a ≻ b ≻ c by the heavy member's small steps, c ≻ a where its gap saturates."""
    found = 0
    generator = np.random.default_rng(0)
    for _ in range(300):
        members = [Rewards(6 * generator.standard_normal(5)) for _ in range(2)]
        mixture = matrix_of(MixtureOracle(members, [0.6, 0.4], ["a", "b"]), 5)
        np.testing.assert_allclose(mixture + mixture.T, 1, atol=1e-12)
        found += has_strict_cycle(mixture)
    assert found > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(rewards, st.floats(0.01, 9)), min_size=1, max_size=4))
def test_it_is_the_weighted_mean(members: list[tuple[list[float], float]]) -> None:
    oracles, weights = [Rewards(r) for r, _ in members], [w for _, w in members]
    mixture = MixtureOracle(oracles, weights, [""] * len(members))
    wanted = np.average([matrix_of(o, 5) for o in oracles], axis=0, weights=weights)
    np.testing.assert_allclose(matrix_of(mixture, 5), wanted, atol=1e-12)
    assert all(oracle.released == 1 for oracle in oracles)


def test_every_comparison_has_its_own_answer() -> None:
    members = [Rewards([0, 1, 2]), Rewards([2, 0, 1])]
    mixture = MixtureOracle(members, [1, 3], ["a", "b"])
    asked = [Comparison(ASKED, ["0"], ["1", "2"]), Comparison(ASKED, ["2", "1"], ["0"])]
    answers = list(Checked(mixture, "mixture").compare(iter(asked)))
    assert [a.shape for a in answers] == [(1, 2), (2, 1)]
    np.testing.assert_allclose(answers[0][0, 1], 1 - answers[1][0, 0])
    assert "0.25" in mixture.fingerprint()


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[0.5, np.nan], [0.5, 0.5]], r"P = nan is no probability .*'Which\?', a = '0', b = '1'"),
        ([[0.5, 0.5], [-0.1, 0.5]], r"P = -0.1 is no probability .*, a = '1', b = '0'"),
        ([[0.5, 1.5], [-0.5, 0.5]], r"P = 1.5 is no probability"),
        ([[0.5, 0.7], [0.7, 0.5]], r"= 0.7 and P\(b ≻ a\) = 0.7 do not add up to 1 .*both_orders"),
        ([[0.9, 0.5], [0.5, 0.5]], r"P\(a ≻ b\) = 0.9 .* a = '0', b = '0'"),
        ([[0.5]], r"shape \(1, 1\) instead of \(2, 2\)"),
    ],
)
def test_what_is_no_preference(matrix: object, words: str) -> None:
    with pytest.raises(InputError, match=f"oracle mine: .*{words}") as caught:
        matrix_of(Checked(Fixed(matrix), "mine"), 2)
    assert "\n" not in str(caught.value)


def test_a_long_text_is_cut() -> None:
    long = self_comparison((Message("user", "word " * 500),), ["a\nb", "c" * 900])
    with pytest.raises(InputError) as caught:
        list(Checked(Fixed([[0.5, 2], [0, 0.5]]), "mine").compare([long]))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_no_answer() -> None:
    class Silent(Fixed):
        def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
            return iter(())

    with pytest.raises(InputError, match="no answer for the prompt 'Which"):
        matrix_of(Checked(Silent([[0.5]]), "mine"), 1)
