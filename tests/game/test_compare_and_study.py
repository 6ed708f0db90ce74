"""`--compare` and `--study`: verdicts by their criteria, tables, files, refusals."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comal_fast.game import OPERATORS, command
from comal_fast.game.compare import calls_to_converge, lineup, same_curves, verdict
from comal_fast.game.nash import duality_gap
from comal_fast.game.study import run_study, study_games

CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def game(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(required=True))
    args = parser.parse_args(["game", *words])
    result: int = args.run(args)
    return result


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by algorithm: a verdict and what follows."""
    names = ("converges", "falling", "stops short", "cycles")
    found = {}
    for line in text.splitlines():
        for name in names:
            label, sign, rest = line.partition(f"  {name}  ")
            if sign:
                found[label.strip()] = [name, *rest.split()]
    return found


def test_verdicts_on_the_game_of_the_paper(capsys):
    game("--compare", "--json", "o.json", "--plot", "o.png")
    table = rows(capsys.readouterr().out)
    assert len(table) == 24
    for name, operator in OPERATORS.items():
        row = table[f"COMAL {name}"]
        assert row[0] == "converges" and row[4:] == ["never", "851"]
        assert float(row[2]) == pytest.approx(1.15e-14, rel=0.1), operator
    for name in ("INPO τ=0.1", "Nash-MD τ=0.1", "EGPO τ=0.1"):
        assert table[name][0] == "stops short" and table[name][2] == "5.9e-02"
    assert table["INPO τ=1"][0] == "stops short"
    assert table["iterative IPO"][0] == table["SPPO"][0] == "cycles"
    assert table["OMWU"][0] == "falling" and table["OMWU η/3"][0] == "converges"
    content = json.loads(Path("o.json").read_text())
    assert [run["verdict"] for run in content["algorithms"]] == [row[0] for row in table.values()]
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")


def test_comparing_another_game_takes_its_options(capsys):
    words = ["--eta=1", "--tau=0.05", "--outer=3", "--inner=4", "--start=0.1,0.2,0.3,0.4"]
    game("--compare", "--game", "cyclic", "--size", "4", "--seed", "5", "--json", "o.json", *words)
    out = capsys.readouterr().out
    assert "a cyclic game, 4 responses, seed 5: η 1, τ 0.05, 3 × 4 oracle calls each" in out
    runs = json.loads(Path("o.json").read_text())["algorithms"]
    assert {run["oracle_calls"][-1] for run in runs} == {12, 13}  # COMAL measures its last gap
    assert sorted(os.listdir()) == ["o.json"]


def test_judged_responses_of_a_run(capsys):
    folder = Path("run/iterations/0001")
    folder.mkdir(parents=True)
    table = pa.table({"prompt_id": [3], "matrix": [np.ravel(CYCLE).tolist()]})
    pq.write_table(table, folder / "judgments.parquet")
    game("--empirical", "run", "--algorithm", "egpo", "--outer", "2")
    assert "egpo on prompt 3 of iteration 1, run, 3 responses" in capsys.readouterr().out


def test_too_many_responses_for_the_linear_program(capsys):
    game("--game", "blotto", "--size", "1001", "--outer", "1", "--inner", "2", "--json", "o.json")
    assert "not computed for more than 1000" in capsys.readouterr().out
    content = json.loads(Path("o.json").read_text())
    assert content["nash"] is content["kl_to_nash"] is content["matrix"] is None
    assert len(content["policy"]) == 1001 and len(content["duality_gap"]) == 2


def test_adaptive_and_prox_reach_the_solver(capsys):
    game("--prox", "dpo", "--adaptive", "--c1", "0.01", "--inner", "200", "--json", "o.json")
    content = json.loads(Path("o.json").read_text())
    assert (content["prox"], content["adaptive"], content["c1"]) == ("dpo", True, 0.01)
    error, budget = np.array(content["inner_error"]), np.array(content["inner_budget"])
    assert (error <= budget).all() and budget[1] == pytest.approx(0.01 / (9 * 16))
    assert "c₁/9t⁴" in capsys.readouterr().out


def test_study_is_reproducible_and_agrees_with_single_games(capsys):
    argv = ["--study", "6", "--seed", "2", "--outer", "20", "--inner", "10"]
    game(*argv, "--json", "a.json", "--plot", "a.png")
    game(*argv, "--json", "b.json")
    first = json.loads(Path("a.json").read_text())
    assert first == json.loads(Path("b.json").read_text())
    assert len(first["sizes"]) == 6 and len(first["algorithms"]) == 23
    games = study_games(6, 2)
    for entry, result in zip(
        lineup(1.0, 0.03, 20, 10, every=10, raw=False), first["algorithms"], strict=True
    ):
        assert entry.label == result["label"]
        for g in (0, 5):
            alone = entry.play(
                games[g].matrix, np.full(len(games[g].names), 1 / len(games[g].names))
            )
            gap = duality_gap(games[g].matrix, alone.policies)
            assert result["final_gap"][g] == pytest.approx(gap[-1], rel=1e-6, abs=1e-12)
    assert "COMAL dpo" in capsys.readouterr().out


def test_comal_lowers_the_kl_on_every_game_of_a_study():
    entries = [e for e in lineup(1.0, 0.1, 30, 100, raw=False) if e.solver in ("comal", "ipo")]
    results = run_study(study_games(10, 0), entries)
    for result in results[:-1]:
        if "prox" in result.options:  # longer steps need not be monotone
            assert all(result.kl_never_rises) and result.share("cycles") == 0
    assert results[-1].share("cycles") >= 0.5 and not all(results[-1].kl_never_rises)


def test_verdict_by_hand():
    t = np.arange(41)
    still, nothing = np.tile([0.5, 0.5], (41, 1)), np.full(41, np.nan)
    round_and_round = np.stack([0.5 + 0.2 * np.sin(t), 0.5 - 0.2 * np.sin(t)], axis=1)
    assert verdict(0.5**t, nothing, still) == "converges"
    assert verdict(0.7 ** (t / 2), nothing, round_and_round) == "falling"
    assert verdict(np.full(41, 0.1), 0.999**t, round_and_round) == "falling"
    swinging = 0.1 * 0.9**t * (1.5 + np.sin(t))  # chance lows of a cycle do not count as falling
    assert verdict(0.1 + swinging, 1 + 0.1 * np.sin(t), round_and_round) == "cycles"
    assert verdict(np.full(41, 0.1), np.ones(41), still) == "stops short"
    assert verdict(np.full(41, 0.1), np.ones(41), round_and_round) == "cycles"
    assert verdict(np.full(2, 0.1), nothing[:2], still[:2]) == "stops short"


def test_calls_to_converge():
    calls = np.arange(5) * 10
    assert calls_to_converge(np.array([1, 1e-7, 1, 1e-7, 0]), calls) == 30
    assert calls_to_converge(np.array([1, 1e-7, 1, 1e-7, 1]), calls) is None
    assert calls_to_converge(np.zeros(5), calls) == 0


def test_same_curves():
    a, b = np.zeros((3, 2)), np.ones((3, 2))
    assert same_curves([a, b, a + 1e-10, np.zeros((4, 2))]) == [[0, 2], [1], [3]]


REFUSED = [
    ("--compare --algorithm comal", "--algorithm has no effect with --compare"),
    ("--compare --prox dpo", "--prox has no effect with --compare"),
    ("--compare --adaptive", "--adaptive has no effect with --compare"),
    ("--compare --tau 9", "tau = 9 is greater than eta"),
    ("--study 0", "--study 0: it must be a number of games"),
    ("--study 2 --seed -1", "--seed -1"),
    ("--study 2 --compare", "--compare has no effect with --study"),
    ("--study 2 --game random", "--game has no effect with --study"),
    ("--study 2 --start 0.5,0.5", "--start has no effect with --study"),
    ("--game random --matrix m.json", "--matrix and --game: two games"),
    ("--size 4", "--size has no effect with --game paper"),
    ("--matrix m.json --seed 4", "--seed has no effect with --matrix"),
    ("--empirical run --size 4", "--size has no effect with --empirical"),
    ("--prompt 4", "--prompt has no effect with a game that is not --empirical"),
    ("--algorithm egpo --prox dpo", "--prox has no effect with --algorithm egpo"),
    ("--algorithm nash-md --eta 1", "--eta has no effect with --algorithm nash-md"),
    ("--c1 -1", "c1 = -1"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refusals_write_nothing(words, message):
    with pytest.raises(ValueError) as caught:
        game(*words.split(), "--json", "o.json", "--plot", "o.png")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir() == []


@pytest.mark.parametrize(("size", "runs"), [("50", 24), ("51", 23)])
def test_raw_labels_take_part_while_they_are_cheap(size, runs, capsys):
    game("--compare", "--game", "random", "--size", size, "--outer=2", "--inner=2", "--json=o.json")
    assert len(json.loads(Path("o.json").read_text())["algorithms"]) == runs
    assert ("dpo-raw is left out beyond 50" in capsys.readouterr().out) == (runs == 23)
