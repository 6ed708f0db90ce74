"""The criteria oracle is a preference, and an intransitive one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import Comparison, Message, self_comparison
from comal_fast.oracles.criteria import CRITERIA, CriteriaOracle, repetition

PROMPT = "Give three tips for sleeping well in a noisy city."
GOOD = "Use earplugs in the noisy city. Keep the bedroom dark. These tips help sleeping well."
WORSE = {
    "complete": GOOD.removesuffix("."),
    "answers": "Use earplugs at night. Keep the bedroom dark. These things help a bit always.",
    "brief": GOOD.removesuffix(".") + " and then" + " more words come along here" * 20 + ".",
    "says_something": "Sleeping well tips: noisy city, three.",
    "varied": GOOD + " " + GOOD + " " + GOOD,
    "direct": "Sure, here you go. " + GOOD,
}


def judge(oracle: CriteriaOracle, *responses: str) -> np.ndarray:
    return next(iter(oracle.compare([self_comparison((Message("user", PROMPT),), responses)])))


@pytest.mark.parametrize("name", CRITERIA)
def test_each_criterion_alone(name: str) -> None:
    alone = CriteriaOracle(weights={name: 2.0}, target_words=15)
    assert judge(alone, GOOD, WORSE[name])[0, 1] > 0.6


@given(st.lists(st.text(max_size=80), min_size=2, max_size=6))
def test_is_a_preference(responses: list[str]) -> None:
    matrix = judge(CriteriaOracle(), *responses)
    assert np.abs(matrix + matrix.T - 1).max() < 1e-12
    assert (matrix >= 0).all() and (matrix <= 1).all()


def test_rectangular_block_of_the_square() -> None:
    oracle, texts = CriteriaOracle(), [GOOD, *WORSE.values()]
    block = next(
        iter(oracle.compare([Comparison((Message("user", PROMPT),), texts[:2], texts[2:])]))
    )
    np.testing.assert_allclose(block, judge(oracle, *texts)[:2, 2:])


def test_strict_cycle_exists() -> None:
    """Shorter, closer to the question, saying more: each beats the next on two of the three."""
    oracle = CriteriaOracle(
        weights={"brief": 0.36, "answers": 0.33, "says_something": 0.31},
        temperatures={"brief": 0.01, "answers": 0.01, "says_something": 0.01},
        target_words=20,
    )
    new = ["lamp", "pillow", "carpet", "window", "garden", "bridge"]
    asked = ["three", "tips", "sleeping", "noisy", "city"]

    def response(length: int, prompt_words: int, new_words: int) -> str:
        content = asked[:prompt_words] + new[:new_words]
        return " ".join(content + ["the"] * (length - len(content)))

    matrix = judge(oracle, response(22, 0, 4), response(26, 5, 2), response(30, 3, 6))
    assert matrix[0, 1] > 0.6 and matrix[1, 2] > 0.6 and matrix[2, 0] > 0.6
    assert has_strict_cycle(matrix)


def test_repetition() -> None:
    assert repetition("one two three four five six") == 0
    assert repetition("") == 0
    assert repetition("a b c a b c a b c") == pytest.approx(4 / 7)


def test_fingerprint_follows_options() -> None:
    prints = {
        CriteriaOracle().fingerprint(),
        CriteriaOracle(target_words=10).fingerprint(),
        CriteriaOracle(weights={"brief": 1.0}).fingerprint(),
        CriteriaOracle(temperatures={"brief": 1.0}).fingerprint(),
    }
    assert len(prints) == 4
