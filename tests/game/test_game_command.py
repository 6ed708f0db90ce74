"""`comal-fast game`: files, tables, pictures and refusals, as a user meets them."""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from comal_fast.game import SOLVERS, comal, command
from comal_fast.store import files

FIELDS = {
    "matrix", "names", "algorithm", "prox", "method", "eta", "tau", "forward", "momentum",
    "opponents", "outer", "inner", "adaptive", "c1",
    "start", "nash", "policy", "duality_gap", "kl_to_nash", "oracle_calls", "inner_error",
    "inner_budget", "versions",
}  # fmt: skip
BOUNDARY = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def game(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["game", *words])
    result: int = args.run(args)
    return result


def written() -> list[str]:
    return sorted(os.listdir())


def test_without_arguments(capsys):
    assert game() == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["comal"][1:5] == ["2000", "2.80e-01", "1.15e-14", "1.15e-14"]
    assert rows["inpo"][4] == "5.88e-02" and rows["ipo"][4] == "7.67e-01"
    assert rows["a"] == ["a", "0.363636", "0.363636", "0.274917", "0.971260"]
    assert written() == ["game.png"]
    assert Path("game.png").read_bytes().startswith(b"\x89PNG")


def test_json_of_the_paper_game(capsys):
    assert game("--algorithm", "comal", "--json", "out.json") == 0
    content = json.loads(Path("out.json").read_text())
    assert set(content) == FIELDS and written() == ["out.json"]
    assert content["start"] == [0.2, 0.5, 0.3] and content["names"] == ["a", "b", "c"]
    assert (content["eta"], content["tau"]) == (1 / 0.3, 0.1)
    assert (content["outer"], content["inner"]) == (40, 50)
    assert len(content["duality_gap"]) == len(content["kl_to_nash"]) == 41
    assert content["duality_gap"][0] == pytest.approx(0.28)
    np.testing.assert_allclose(content["nash"], np.array([4, 3, 4]) / 11, atol=1e-15)
    np.testing.assert_allclose(content["policy"], content["nash"], atol=1e-13)
    assert {"python", "numpy", "scipy"} <= set(content["versions"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "e-" in line]
    assert shown == [str(t) for t in range(0, 41, 5)]


def test_every_option_reaches_the_solver():
    Path("m.json").write_text(json.dumps({"matrix": BOUNDARY, "names": ["x", "[red]y", "$z"]}))
    options = ["--eta=2", "--tau=0.5", "--outer=4", "--inner=3", "--start=0.3,0.3,0.4"]
    assert game("--matrix", "m.json", "--json", "o.json", "--plot", "p.svg", *options) == 0
    content = json.loads(Path("o.json").read_text())
    expected = comal(BOUNDARY, (0.3, 0.3, 0.4), eta=2.0, tau=0.5, outer=4, inner=3)
    assert content["policy"] == expected.policies[-1].tolist()
    assert content["names"] == ["x", "[red]y", "$z"] and content["matrix"] == BOUNDARY
    assert "<svg" in Path("p.svg").read_text()


@pytest.mark.parametrize(("algorithm", "outer"), [("comal", 40), ("inpo", 40), ("ipo", 2000)])
def test_algorithms_and_their_defaults(algorithm, outer):
    Path("m.json").write_text(json.dumps(BOUNDARY))
    assert game("--matrix", "m.json", "--algorithm", algorithm, "--json", "o.json") == 0
    content = json.loads(Path("o.json").read_text())
    assert content["outer"] == outer and len(content["duality_gap"]) == outer + 1
    assert content["start"] == [1 / 3] * 3
    assert (content["tau"] is None) == (content["inner"] is None) == (algorithm == "ipo")


def test_infinite_kl_is_infinity_in_json_and_on_screen(capsys):
    Path("m.json").write_text(json.dumps(BOUNDARY))
    argv = ["--matrix", "m.json", "--start", "0,0.5,0.5", "--outer", "2"]
    assert game(*argv, "--json", "o.json", "--plot", "p.png") == 0
    kl = json.loads(Path("o.json").read_text())["kl_to_nash"]
    assert kl == [math.inf] * 3
    assert "inf" in capsys.readouterr().out


def test_many_responses_print_briefly(capsys):
    n = 200
    upper = np.triu(np.random.default_rng(0).random((n, n)) - 0.5, 1)
    Path("m.json").write_text(json.dumps((0.5 + upper - upper.T).tolist()))
    assert game("--matrix", "m.json", "--outer", "3") == 0
    out = capsys.readouterr().out
    assert "190 others" in out and len(out.splitlines()) < 30
    assert written() == ["m.json"]


def test_a_nash_that_is_not_unique_is_said(capsys):
    Path("m.json").write_text("[[0.5, 0.5], [0.5, 0.5]]")
    game("--matrix", "m.json", "--outer", "1")
    assert "not unique" in capsys.readouterr().out


REFUSED = [
    ("--algorithm ipo --inner 5", "--inner has no effect with --algorithm ipo"),
    ("--algorithm ipo --tau 0.1", "--tau has no effect with --algorithm ipo"),
    ("--matrix absent.json", "absent.json: no such file"),
    ("--start 0.5,0.5", "--start: 2 entries, but the game has 3"),
    ("--start a,b,c", "--start: entry 0 is 'a', not a number"),
    ("--start=-0.1,0.6,0.5", "--start: entry 0 is -0.1"),
    ("--start 0.5,0.5,0.5", "--start: the entries sum to 1.5"),
    ("--tau 9", "tau = 9 is greater than eta"),
    ("--tau 0", "tau = 0"),
    ("--eta nan", "eta = nan"),
    ("--outer 0", "outer = 0"),
    ("--inner 0", "inner = 0"),
    ("--json no/such/o.json", "--json no/such/o.json: the folder no/such does not exist"),
    ("--plot no/p.png", "--plot no/p.png: the folder no does not exist"),
    ("--plot p.gif", "--plot p.gif: the name must end in one of .png"),
    ("--json .", "exists and is not a regular file"),
    ("--json o.png --plot ./o.png", "the same file as --json"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refusals_write_nothing(words, message):
    argv = words.split()
    if "--json" not in argv:
        argv += ["--json", "kept.json"]
    if "--plot" not in argv:
        argv += ["--plot", "kept.png"]
    with pytest.raises(ValueError) as caught:
        game(*argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert written() == []


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(monkeypatch):
    Path("o.json").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ValueError, match=r"o\.json: cannot be written \(No space left"):
        game("--json", "o.json")
    assert written() == ["o.json"] and Path("o.json").read_text() == "old"


def test_a_link_is_written_through():
    Path("real").mkdir()
    Path("link.json").symlink_to("real/o.json")
    game("--json", "link.json", "--outer", "1")
    assert Path("link.json").is_symlink() and json.loads(Path("real/o.json").read_text())


def test_one_more_solver_is_one_registration(monkeypatch):
    def idle(matrix, start=None, *, outer=3, on_step=None):
        return comal(matrix, start, outer=outer, inner=1)

    monkeypatch.setitem(SOLVERS, "idle", idle)
    assert game("--algorithm", "idle", "--json", "o.json") == 0
    assert len(json.loads(Path("o.json").read_text())["duality_gap"]) == 4
    with pytest.raises(ValueError, match="--eta has no effect with --algorithm idle"):
        game("--algorithm", "idle", "--eta", "1")


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "comal_fast", "game", *words], capture_output=True, text=True
    )


def test_program_writes_json():
    done = program("--algorithm", "inpo", "--json", "o.json")
    assert done.returncode == 0, done.stderr
    content = json.loads(Path("o.json").read_text())
    assert content["duality_gap"][-1] == pytest.approx(0.0588, abs=5e-5)


def test_program_says_errors_in_one_line():
    Path("m.json").write_text("[[0.5, 0.7], [0.4, 0.5]]")
    done = program("--matrix", "m.json", "--json", "o.json")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("comal-fast: error: m.json: P[0][1] + P[1][0] = 1.1")
    assert done.stderr.count("\n") == 1 and written() == ["m.json"]
