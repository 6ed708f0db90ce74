"""`comal-fast oracle check`: figures of oracles whose bias is known, and the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.cli import main
from comal_fast.oracle_check.calibration import calibration_error, correct, reliability
from comal_fast.oracle_check.measure import Judged, measures

JUDGES = """
import numpy as np

def _each(comparisons, wins):
    return [[[wins(a, b) for b in c.right] for a in c.left] for c in comparisons]

def longer(comparisons):
    return _each(comparisons, lambda a, b: 0.5 + 0.4 * np.sign(len(a) - len(b)))

def first(comparisons):
    return _each(comparisons, lambda a, b: 0.9)

def half(comparisons):
    return _each(comparisons, lambda a, b: 0.5)

def circle(comparisons):
    order = {"a": 0, "b": 1, "c": 2}
    def wins(a, b):
        step = (order.get(a[0], 0) - order.get(b[0], 0)) % 3
        return (0.5, 0.8, 0.2)[step]
    return _each(comparisons, wins)
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Ten pairs whose chosen response is longer in seven, and a configuration's first half."""
    rows = [
        {"prompt": f"Say {i}.", "chosen": "x" * (5 if i < 7 else 2), "rejected": "y" * 3}
        for i in range(10)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "judges.py").write_text(JUDGES)
    return tmp_path


def check(files: Path, function: str, *more: str, **options: Any) -> dict[str, Any]:
    oracle = {"name": "python", "function": f"{files}/judges.py:{function}", **options}
    text = f"model: {{name_or_path: x}}\noutput_dir: {files}/run\noracle: {json.dumps(oracle)}\n"
    (files / "check.yaml").write_text(text)
    command = ["oracle", "check", str(files / "check.yaml"), "--pairs", str(files / "pairs.jsonl")]
    out = [f"--page={files}/page.html", f"--json={files}/out.json"]
    assert main([*command, *out, *more]) == 0
    result: dict[str, Any] = json.loads((files / "out.json").read_text())
    return result


def test_a_length_bias(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(files, "longer")
    assert found["pairs"] == 10 and found["accuracy"]["mean"] == 0.7
    low, high = found["accuracy"]["ci95"]
    assert low < 0.7 < high
    assert found["length"]["longer_wins"]["mean"] == pytest.approx(0.9)
    assert found["length"]["longer_chosen"]["mean"] == 0.7
    assert found["length"]["excess"]["mean"] == pytest.approx(0.2)
    assert found["confidence"]["mean"] == pytest.approx(0.9)
    assert found["prompts"] == 10
    low, high = found["ece"]["ci95"]
    assert low <= found["ece"]["mean"] <= high
    assert found["position"] is None and found["cycles"] is None
    page = (files / "page.html").read_text()
    assert "Of 10 pairs that people judged" in page and "data:image/png" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "longer wins" in capsys.readouterr().out
    again = check(files, "longer")
    assert again["oracle/asked"] == 0 and again["accuracy"] == found["accuracy"]


def test_a_position_bias(files: Path) -> None:
    found = check(files, "first", both_orders=True)
    assert found["position"]["first_wins"]["mean"] == pytest.approx(0.9)
    assert found["position"]["same_in_both_orders"]["mean"] == 0
    assert found["position"]["ties"]["mean"] == 0
    assert found["accuracy"]["mean"] == 0.5 and found["confidence"]["mean"] == 0.5


def test_an_oracle_that_never_decides_is_no_less_consistent(files: Path) -> None:
    """Ties are neither agreement nor disagreement, and ½ is right half of the time."""
    found = check(files, "half", both_orders=True)
    assert found["position"]["same_in_both_orders"] is None
    assert found["position"]["ties"]["mean"] == 1
    assert found["ece"]["mean"] == found["ece"]["ci95"][0] == 0
    assert "<td>–</td>" in (files / "page.html").read_text()


def test_few_prompts_give_no_verdict(files: Path) -> None:
    """Sixty pairs, all judged rightly, of nine prompts."""
    rows = [
        {"prompt": f"Say {i % 9}.", "chosen": "x" * (5 + i), "rejected": "y"} for i in range(60)
    ]
    (files / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = check(files, "longer")
    assert (found["pairs"], found["prompts"], found["accuracy"]["mean"]) == (60, 9, 1)
    assert "9 prompts are too few" in (files / "page.html").read_text()


def test_pairs_of_one_prompt_count_as_one() -> None:
    """Six equal pairs a prompt have the interval of one pair a prompt."""
    rng = np.random.default_rng(0)
    wins, longer = rng.random(40), rng.integers(-1, 2, 40)

    def measured(times: int) -> dict[str, Any]:
        prompt = np.repeat(np.arange(40), times)
        first = np.stack([wins, 1 - wins], axis=1)
        return measures(
            Judged(wins[prompt], prompt, first[prompt], longer[prompt], np.zeros(0), 1.0, {})
        )

    once, often = measured(1), measured(6)
    for name in ("accuracy", "log_loss", "confidence"):
        assert often[name]["ci95"] == pytest.approx(once[name]["ci95"])
    assert often["length"]["excess"]["ci95"] == pytest.approx(once["length"]["excess"]["ci95"])
    same = (result["position"]["same_in_both_orders"]["ci95"] for result in (once, often))
    assert next(same) == pytest.approx(next(same))


def test_cycles(files: Path) -> None:
    """One prompt has three responses in a circle, another three in a line."""
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    rows = [{"prompt": "One?", "chosen": a, "rejected": b} for a, b in pairs]
    rows += [{"prompt": "Two?", "chosen": a + a, "rejected": b + b} for a, b in pairs[:1]]
    rows += [{"prompt": "Two?", "chosen": "aaa", "rejected": "bb"}]
    (files / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = check(files, "circle")
    assert found["cycles"]["prompts"] == 2 and found["cycles"]["mean"] == 0.5


def test_how_sure_the_people_were(files: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "yy", "probability": 0.1},
        {"prompt": "q", "chosen": "x", "rejected": "yy", "probability": 0.5},
    ]
    (files / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = check(files, "longer")
    assert found["pairs"] == 1 and found["accuracy"]["mean"] == 1


def test_limit_and_bad_input(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(files, "longer", "--limit", "4")["pairs"] == 4
    config, pairs = str(files / "check.yaml"), str(files / "pairs.jsonl")

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["oracle", "check", config, *arguments]) == 2
        return capsys.readouterr().err

    assert "--limit: 0" in refused("--pairs", pairs, "--limit", "0")
    assert "--pairs none.jsonl: no such file" in refused("--pairs", "none.jsonl")
    assert "--page" in refused("--pairs", pairs, "--page", str(files / "no" / "p.html"))
    assert "oracle.name: none judges nothing" in refused(
        "--pairs", pairs, "oracle={name: none}", f"data.pairs={pairs}"
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 6))
def test_calibration_error(wins: list[float], times: int) -> None:
    """It lies in its own interval, and that in [0, 1]; the groups hold every pair once."""
    values = np.repeat(wins, times)
    groups = reliability(values)
    assert sum(n for _, _, n in groups) == len(values)
    assert set(correct(values)) <= {0.0, 0.5, 1.0}
    found = calibration_error(values, np.repeat(np.arange(len(wins)), times))
    assert 0 <= found.low <= found.mean + 1e-9 and found.mean <= found.high + 1e-9 <= 1 + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truth", [0.0, 0.1])
def test_calibration_error_has_no_upward_bias(seed: int, truth: float) -> None:
    """Of 200 oracles that claim `truth` too much, root mean square: the truth, to a tenth."""
    rng = np.random.default_rng(seed)
    squares = []
    for _ in range(200):
        confidence = rng.uniform(0.6, 0.98, 300)
        right = rng.random(300) < confidence - truth
        wins = np.where(right, confidence, 1 - confidence)
        squares.append(calibration_error(wins, np.arange(300)).mean ** 2)
    assert math.sqrt(np.mean(squares)) == pytest.approx(truth, abs=0.04 if truth == 0 else 0.01)
