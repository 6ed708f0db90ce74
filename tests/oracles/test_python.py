"""A function of the user's own, from a file and from a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from comal_fast.config import load_config
from comal_fast.config.oracle import PythonConfig
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, Message, make_oracle, self_comparison

CODE = """
import numpy as np

def shorter(comparisons):
    return [
        [[1 / (1 + np.exp(len(a) - len(b))) for b in c.right] for a in c.left]
        for c in comparisons
    ]

def first(comparisons):
    return [np.full((len(c.left), len(c.right)), 0.8) for c in comparisons]

def length(comparisons):
    return [[len(text) for text in [*c.left, *c.right]] for c in comparisons]

def calls(comparisons):
    return [np.full((len(c.left), len(c.right)), 0.5) for c in comparisons][:2]

def word(comparisons):
    return [["no"] for c in comparisons]

def number(comparisons):
    return 3

def infinite(comparisons):
    return [[float("inf")] * (len(c.left) + len(c.right)) for c in comparisons]

def broken(comparisons):
    raise RuntimeError("mine")

not_callable = 3
"""
ASKED = (Message("user", "Say it."),)
SEVERAL = [self_comparison(ASKED, ["a", "bb", "cccc"]), Comparison(ASKED, ["a"], ["bb", "a"])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def answers(file: Path, name: str, **options: Any) -> list[np.ndarray]:
    return list(make_oracle(PythonConfig(function=f"{file}:{name}", **options)).compare(SEVERAL))


def test_probabilities_and_scores(file: Path) -> None:
    probabilities = answers(file, "shorter")
    scores = answers(file, "length", returns="scores", temperature=2.0, batch_size=1)
    lengths = np.array([1, 2, 4])
    gap = lengths[:, None] - lengths[None, :]
    np.testing.assert_allclose(probabilities[0], expit(-gap))
    np.testing.assert_allclose(scores[0], expit(gap / 2))
    np.testing.assert_allclose(scores[1], expit([[-0.5, 0]]))


def test_both_orders(file: Path) -> None:
    assert all((matrix == 0.5).all() for matrix in answers(file, "first", both_orders=True))
    with pytest.raises(InputError, match="do not add up to 1"):
        answers(file, "first")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere", {}, "no function nowhere in"),
        ("not_callable", {}, "no function not_callable in"),
        ("number", {}, "returned int, no list"),
        ("word", {}, "returned no numbers for the prompt 'Say it.'"),
        ("first", {"returns": "scores"}, r"scores of shape \(3, 3\) instead of \(6,\)"),
        ("infinite", {"returns": "scores"}, "scored inf for the prompt 'Say it.', response 'a'"),
    ],
)
def test_what_it_may_not(file: Path, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        answers(file, name, **options)
    assert "\n" not in str(caught.value)


def test_an_entry_missing(file: Path) -> None:
    oracle = make_oracle(PythonConfig(function=f"{file}:calls"))
    with pytest.raises(InputError, match="returned 2 entries for 3 comparisons"):
        list(oracle.compare([*SEVERAL, Comparison(ASKED, ["a"], ["c"])]))


def test_its_own_errors_are_its_own(file: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        answers(file, "broken")


def test_fingerprint_follows_the_file(file: Path, tmp_path: Path) -> None:
    def key(path: Path, **options: Any) -> str:
        return make_oracle(PythonConfig(function=f"{path}:length", **options)).fingerprint()

    copy = tmp_path / "copy.py"
    copy.write_text(CODE)
    before = key(file)
    assert key(copy) == before != key(file, returns="scores")
    file.write_text(CODE + "\n# other\n")
    assert key(file) != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("function: mine.py", "neither file.py:name nor package.module:name"),
        ("function: 'mine.py:no name'", "neither"),
        ("function: 'mine.py:f', temperature: 1", "probabilities have none"),
        ("function: 'mine.py:f', returns: scores, both_orders: true", "scores have no order"),
        ("returns: scores", "oracle.function: missing"),
    ],
)
def test_bad_options(tiny_run: Path, options: str, words: str) -> None:
    text = tiny_run.read_text()
    tiny_run.write_text(text.replace("{target_words: 2}", f"{{name: python, {options}}}"))
    with pytest.raises(InputError, match=words):
        load_config(tiny_run)


def test_a_module_and_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    oracle = make_oracle(PythonConfig(function="judge_of_mine:shorter"))
    assert len(list(oracle.compare(SEVERAL))) == 2
    with pytest.raises(InputError, match="oracle.function: no_such_module: no such module"):
        make_oracle(PythonConfig(function="no_such_module:f"))
    with pytest.raises(InputError, match=r"oracle.function: .*none.py: no such file"):
        make_oracle(PythonConfig(function=f"{tmp_path}/none.py:f"))


def test_a_run(tiny_run: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    oracle = "{name: python, function: 'mine.py:length', returns: scores}"
    tiny_run.write_text(tiny_run.read_text().replace("{target_words: 2}", oracle))
    config = load_config(tiny_run, ["algorithm.iterations=1"])
    monkeypatch.chdir("/")  # the file is found from elsewhere too
    assert run_all(config)["iterations"] == 1
