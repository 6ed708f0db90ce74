"""The round robin: the game that it finds, debiasing, and the verb on real run directories."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from comal_fast.cli import main
from comal_fast.compare.entrants import _names
from comal_fast.compare.tables import matrix_table, pairs_table, standings_table
from comal_fast.compare.tournament import Entrant, play, standings, to_json
from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, Message, Oracle
from comal_fast.oracles.criteria import CriteriaOracle
from comal_fast.oracles.order import debiased
from comal_fast.statistics import rate_interval
from games import CYCLIC, ORDERED, FirstLetter

PROMPTS = [(Message("user", f"prompt {i}"),) for i in range(40)]


def pure(letters: str, length: float = 1.0) -> list[Entrant]:
    """Entrants that always answer with one letter: a is 1, b 2, c 0 modulo 3."""
    lengths = np.full(len(PROMPTS), length)
    return [Entrant(letter, [[letter, letter]] * len(PROMPTS), lengths) for letter in letters]


def test_rock_paper_scissors() -> None:
    game = play(pure("abc"), PROMPTS, FirstLetter(CYCLIC))
    classes = [1, 2, 0]
    np.testing.assert_allclose(game.matrix, np.array(CYCLIC)[np.ix_(classes, classes)])
    result = to_json(game, 200, 0)
    for e in result["entrants"]:
        assert e["nash_weight"] == pytest.approx(1 / 3)
        assert e["exploitability"] == pytest.approx(0.45) and e["beaten_by"] is not None
    assert all(p["ties"] == 0 for p in result["pairs"])


def test_one_that_beats_all_is_unbeaten() -> None:
    found = standings("cab", play(pure("cab"), PROMPTS, FirstLetter(ORDERED)).wins, 200, 0)
    assert [s.nash for s in found] == pytest.approx([1, 0, 0])
    assert [s.exploitability for s in found] == pytest.approx([0, 0.4, 0.4])
    assert [s.beaten_by for s in found] == [None, "c", "c"]
    assert found[0].mean == pytest.approx(0.9)


def noisy_wins(seed: int, size: int, n: int) -> np.ndarray:
    """Verdicts between equals: each of a pair wins a prompt by chance."""
    wins = np.full((size, size, n), 0.5)
    verdicts = np.random.default_rng(seed).random((size, size, n)) < 0.5
    for i in range(size):
        for j in range(i):
            wins[i, j], wins[j, i] = verdicts[i, j], ~verdicts[i, j]
    return wins


def test_the_best_of_equals_is_not_said_to_beat() -> None:
    """Of nine equals the worst one looks beaten by more than chance; it is not claimed."""
    names, pointwise = "abcdefghi", 0
    for seed in range(5):
        wins = noisy_wins(seed, 9, 56)
        found = standings(names, wins, 2000, 0)
        assert [s.beaten_by for s in found].count(None) >= 8
        for i, s in enumerate(found):
            assert s.interval[0] <= s.exploitability <= s.interval[1]
            assert s.best_opponent in (None, *names.replace(names[i], ""))
            pointwise += any(rate_interval(w).low > 0.5 for w in np.delete(wins[:, i], i, axis=0))
    assert pointwise >= 3, "intervals of one pair alone would claim several"


def test_nobody_is_beaten_on_nine_prompts() -> None:
    wins = np.full((2, 2, 9), 0.5)
    wins[0, 1], wins[1, 0] = 1.0, 0.0
    (_, loser) = standings("ab", wins, 500, 0)
    assert loser.best_opponent == "a" and loser.beaten_by is None
    (_, loser) = standings("ab", np.concatenate([wins, wins], axis=2), 500, 0)
    assert loser.beaten_by == "a"


def test_tables_say_what_is_not_comparable() -> None:
    """The one that wins is always longer, so nothing is known at equal length."""
    entrants = [pure("c", 50.0)[0], pure("a", 10.0)[0]]
    result = to_json(play(entrants, PROMPTS, FirstLetter(ORDERED)), 200, 0)
    controlled = result["pairs"][0]["length_controlled"]
    assert controlled["mean"] is None and controlled["overlap"] == 0
    json.dumps(result, allow_nan=False)
    out = io.StringIO()
    for table in (matrix_table(result), standings_table(result), pairs_table(result)):
        Console(file=out, width=200).print(table)
    assert "not comparable (0% overlap)" in out.getvalue() and "shown to beat it" in out.getvalue()


def test_entrants_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/y/run")]
    assert _names(runs[:1]) == ["run"]
    assert _names(runs[1:]) == ["x/run", "y/run"]
    assert _names(runs) == ["a/x/run", "b/x/run", "b/y/run"]
    with pytest.raises(InputError, match="given twice"):
        _names([runs[0], runs[1], tmp_path / "a/../a/x/run"])


def test_ties_are_counted_as_half() -> None:
    game = play(pure("aa"), PROMPTS, FirstLetter(ORDERED))
    assert game.ties[0, 1] == 1 and (game.wins[0, 1] == 0.5).all()


class FirstIsBetter(Oracle):
    """A fair judge but for 0.2 more for whatever comes first."""

    sees_order = True

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        for matrix in FirstLetter(ORDERED).compare(comparisons):
            yield 0.2 + 0.8 * matrix

    def fingerprint(self) -> str:
        return "first is better"


def test_both_orders_take_the_bias_out() -> None:
    item = Comparison((Message("user", "x"),), ["a", "b"], ["b", "c", "a"])
    (biased,) = FirstIsBetter().compare([item])
    (fair,) = debiased(FirstIsBetter()).compare([item])
    (truth,) = FirstLetter(ORDERED).compare([item])
    assert biased[0, 2] == pytest.approx(0.6)
    np.testing.assert_allclose(fair, 0.5 + 0.8 * (truth - 0.5))
    square = Comparison((Message("user", "x"),), ["a", "b", "c"], ["a", "b", "c"])
    (fair,) = debiased(FirstIsBetter()).compare([square])
    np.testing.assert_allclose(fair + fair.T, 1, atol=1e-15)
    assert debiased(FirstIsBetter()).fingerprint() != FirstIsBetter().fingerprint()


def test_symmetric_oracles_are_left_alone() -> None:
    oracle = CriteriaOracle()
    assert debiased(oracle) is oracle


@pytest.fixture
def two_runs(tiny_run: Path, tmp_path: Path) -> list[Path]:
    runs = [tmp_path / "slow", tmp_path / "quick"]
    brief = [
        "evaluation.report=true",
        "algorithm.iterations=1",
        "training.num_train_epochs=1",
        "training.save_steps=0",
    ]
    for run, rate in zip(runs, ("1e-4", "1e-2"), strict=True):
        options = [f"output_dir={run}", f"training.learning_rate={rate}", *brief]
        run_all(load_config(tiny_run, options))
    return runs


def test_compare_runs(
    two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The initial policy enters once; a run's own evaluation is found again."""
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["compare", *map(str, two_runs), "--json", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    assert result["names"] == ["initial", "slow π_1", "quick π_1"] and result["n_prompts"] == 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    for run, name in zip(two_runs, result["names"][1:], strict=True):
        own = json.loads((run / "iterations/0001/evaluation.json").read_text())["win_rates"]["0"]
        (pair,) = [p for p in result["pairs"] if (p["row"], p["column"]) == (name, "initial")]
        assert pair["win_rate"] == pytest.approx(own["mean"], abs=1e-12)
        assert pair["ci95"] == pytest.approx(own["ci95"], abs=1e-12)
        assert pair["ties"] == own["ties"]
        assert pair["length_controlled"] == own["length_controlled"]
    matrix = np.array(result["matrix"])
    np.testing.assert_allclose(matrix + matrix.T, 1, atol=1e-12)
    assert main(["compare", str(two_runs[0]), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["names"] == ["initial", "π_1"]
    page = (two_runs[0] / "report.html").read_text()
    assert "The game between the iterates" in page and "At equal length" in page
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for bad, words in ((tmp_path / "empty", "not a run directory"), (tmp_path / "no", "no such")):
        assert main(["compare", str(two_runs[0]), str(bad)]) == 2
        assert words in capsys.readouterr().err
    config = two_runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("target_words: 2", "target_words: 3"))
    assert main(["compare", *map(str, two_runs)]) == 2
    assert "its oracle differs" in capsys.readouterr().err
