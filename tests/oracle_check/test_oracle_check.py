"""`comal-fast oracle check`: figures of oracles whose bias is known, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.cli import main
from comal_fast.oracle_check.measure import correct, expected_error, reliability

JUDGES = """
import numpy as np

def _each(comparisons, wins):
    return [[[wins(a, b) for b in c.right] for a in c.left] for c in comparisons]

def longer(comparisons):
    return _each(comparisons, lambda a, b: 0.5 + 0.4 * np.sign(len(a) - len(b)))

def first(comparisons):
    return _each(comparisons, lambda a, b: 0.9)

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
    assert found["ece"]["mean"] == pytest.approx(0.3, abs=0.2)
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
    assert found["accuracy"]["mean"] == 0.5 and found["confidence"]["mean"] == 0.5


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
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_calibration_error(wins: list[float]) -> None:
    """Against its definition, group by group; it never exceeds the gap's bounds."""
    values = np.array(wins)
    groups = reliability(values)
    assert sum(n for _, _, n in groups) == len(wins)
    wanted = sum(n / len(wins) * abs(c - a) for c, a, n in groups)
    assert expected_error(values) == pytest.approx(wanted)
    assert 0 <= wanted <= 1
    assert set(correct(values)) <= {0.0, 0.5, 1.0}
