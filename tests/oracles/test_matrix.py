"""The matrix oracle: a preference over whatever strings it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.game import duality_gap, nash_policy, paper_game
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, Message, make_oracle, self_comparison
from comal_fast.oracles.matrix import MatrixOracle, with_unknown

GAME = paper_game()
TEXTS = st.lists(st.one_of(st.sampled_from(GAME.names), st.text(max_size=3)), min_size=1)


@given(TEXTS, TEXTS, st.floats(0, 0.5))
def test_is_a_preference(left: list[str], right: list[str], unknown_wins: float) -> None:
    oracle = MatrixOracle(GAME, unknown_wins)
    texts = [*left, *right]
    square, block = oracle.compare(
        [
            self_comparison((Message("user", "any prompt"),), texts),
            Comparison((Message("user", "another"),), left, right),
        ]
    )
    assert np.abs(square + square.T - 1).max() <= 1e-15
    np.testing.assert_array_equal(block, square[: len(left), len(left) :])
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            known = [text in GAME.names for text in (a, b)]
            if all(known):
                wanted = GAME.matrix[GAME.names.index(a), GAME.names.index(b)]
            else:
                wanted = 0.5 if not any(known) else unknown_wins if known[1] else 1 - unknown_wins
            assert square[i, j] == wanted


def test_unknown_responses_leave_the_nash_policy() -> None:
    whole = with_unknown(GAME.matrix, 0.3)
    nash = np.append(nash_policy(GAME.matrix), 0)
    assert duality_gap(whole, nash) <= 1e-12


def test_from_a_file(tiny_run: Path) -> None:
    game = tiny_run.parent / "game.json"
    game.write_text(json.dumps({"matrix": GAME.matrix.tolist(), "names": ["x", "y", "z"]}))
    tiny_run.write_text(
        tiny_run.read_text().replace(
            "oracle: {target_words: 2}", f"oracle: {{name: matrix, game: {game}}}"
        )
    )
    oracle = make_oracle(load_config(tiny_run).oracle)
    (matrix,) = oracle.compare([Comparison((Message("user", ""),), ["x", "y ", "z"], ["y"])])
    assert matrix.ravel().tolist() == [0.1, 0.0, 0.9]
    other = make_oracle(load_config(tiny_run, ["oracle.unknown_wins=0.1"]).oracle)
    assert len({oracle.fingerprint(), other.fingerprint()}) == 2

    for override, words in (
        ("oracle.game=null", r"oracle\.game: expected str, found nothing$"),
        ("oracle={name: matrix}", r"oracle\.game: missing, and it has no default"),
        ("oracle.unknown_wins=0.6", r"oracle\.unknown_wins: 0\.6 is outside \[0, 0\.5\]"),
        ("oracle.weights={brief: 1}", r"oracle\.weights: oracle matrix ignores it"),
    ):
        with pytest.raises(ValueError, match=words):
            load_config(tiny_run, [override])
    game.write_text(json.dumps([[0.5, 0.7], [0.7, 0.5]]))
    with pytest.raises(InputError, match=r"oracle\.game .*P\[0\]\[1\] \+ P\[1\]\[0\] = 1\.4"):
        make_oracle(load_config(tiny_run).oracle)
    with pytest.raises(InputError, match=r"oracle\.game none\.json: no such file"):
        run_all(load_config(tiny_run, ["oracle.game=none.json"]))
    assert not (tiny_run.parent / "run").exists()
