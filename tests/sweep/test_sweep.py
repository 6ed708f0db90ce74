"""A real grid of tiny runs: resumed, sharing work, and saying no more than its intervals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.statistics import NOWHERE, Interval
from comal_fast.store.directory import RunDirectory
from comal_fast.sweep.collect import Sweep, to_json
from comal_fast.sweep.conclusions import conclusions
from comal_fast.sweep.effects import Effect
from comal_fast.sweep.grid import Axis, Cell
from comal_fast.sweep.markdown import render
from comal_fast.sweep.results import Result
from comal_fast.sweep.runs import is_finished

BRIEF = ["training.num_train_epochs=1", "training.save_steps=0", "diagnostics.cycling=off"]
GRID = ["--grid", "tau_eta_ratio=0.2,1", "ref_update_interval=1,1000"]


@pytest.mark.slow
def test_a_grid_runs_shares_and_resumes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "page.md"
    arguments = ["sweep", str(tiny_run), *GRID, "--markdown", str(page), *BRIEF]
    assert main(arguments) == 0
    folder = tmp_path / "run"
    result = json.loads((folder / "sweep.json").read_text())
    names = [cell["name"] for cell in result["cells"]]
    assert len(names) == 4 and names[0] == "tau_eta_ratio=0.2,ref_update_interval=1"
    for cell in result["cells"]:
        own = folder / "cells" / cell["name"] / "summary.json"
        assert json.loads(own.read_text())["win_rate"]["mean"] == cell["win_rate"]["mean"]
    assert [e["option"] for e in result["effects"]] == [
        "algorithm.tau_eta_ratio", "algorithm.ref_update_interval",
    ]  # fmt: skip
    assert all(e["pairs"] == 2 and e["head_to_head"] for e in result["effects"])

    text = page.read_text()
    grid = "--grid tau_eta_ratio=0.2,1 ref_update_interval=1,1000"
    assert f"{tiny_run} {' '.join(BRIEF)} {grid} --markdown {page}\n" in text
    assert "4 held-out prompts are too few" in text and "is higher" not in text
    assert "one training run per setting (seed 0)" in text
    assert (tmp_path / "img/page.png").read_bytes().startswith(b"\x89PNG")
    assert text.replace("img/page.png", "img/sweep.png") == (folder / "sweep.md").read_text()

    # π_1 is the same under both intervals, so the second cell only linked it
    first, second, third = (folder / "cells" / name / "iterations" for name in names[:3])
    weights = "model/model.safetensors"
    assert (first / "0001" / weights).samefile(second / "0001" / weights)
    assert not (first / "0002" / weights).samefile(second / "0002" / weights)
    assert (first / "0001/samples.parquet").samefile(third / "0001/samples.parquet")
    # … and a cell that started alone comes out the same
    options = ["algorithm.tau_eta_ratio=0.2", "algorithm.ref_update_interval=1000", *BRIEF]
    alone = tmp_path / "alone"
    run_all(load_config(tiny_run, [*options, f"output_dir={alone}"]))
    ours, theirs = (
        load_file(alone / "iterations/0002" / weights),
        load_file(second / "0002" / weights),
    )
    assert all((theirs[name] == tensor).all() for name, tensor in ours.items())

    def rows(run: Path) -> list[str]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        clean = [{k: v for k, v in r.items() if not k.startswith(("perf/", "mem/"))} for r in lines]
        return sorted(json.dumps(row, sort_keys=True) for row in clean)

    assert rows(alone) == rows(second.parent)

    # a finished grid is only read; one cell lost is the only one run again
    capsys.readouterr()
    before = (first / "0002" / weights).stat().st_mtime_ns
    (folder / "cells" / names[3] / "summary.json").unlink()
    assert main(arguments) == 0
    assert "cell 4 of 4" in (out := capsys.readouterr().out) and "cell 3 of 4" not in out
    assert (first / "0002" / weights).stat().st_mtime_ns == before


@pytest.mark.slow
def test_seeds_and_a_second_judge(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Seeds hold out prompts of their own; a judge who says the opposite sees the opposite."""
    grid = ["--grid", "ref_update_interval=1,1000", "seed=0,1", "--power"]
    judge = ["--judge", "oracle.name=python", f"oracle.function={tmp_path / 'judge.py'}:judge"]
    (tmp_path / "judge.py").write_text(
        "from comal_fast.config.oracle import CriteriaConfig\n"
        "from comal_fast.oracles import make_oracle\n"
        "first = make_oracle(CriteriaConfig(target_words=2))\n"
        "def judge(comparisons):\n"
        "    return [1 - matrix for matrix in first.compare(iter(comparisons))]\n"
    )
    assert main(["sweep", str(tiny_run), *grid, *BRIEF, *judge]) == 0
    found = json.loads((tmp_path / "run/sweep.json").read_text())
    assert found["judge"] == "python" and not found["game"]
    (effect,) = found["effects"]
    assert effect["pairs"] == 2
    for ours, theirs in (("difference", "second_judge"),
                         ("head_to_head", "second_judge_head_to_head")):  # fmt: skip
        even = 0.0 if ours == "difference" else 1.0
        low, high = effect[theirs]["ci95"]
        assert effect[ours]["mean"] == pytest.approx(even - effect[theirs]["mean"])
        assert effect[ours]["ci95"] == pytest.approx([even - high, even - low])
    for cell in found["cells"]:
        assert cell["second_judge"]["mean"] == pytest.approx(1 - cell["win_rate"]["mean"])
    for average in found["averages"]:
        cells = [c for c in found["cells"] if average["settings"].items() <= c["settings"].items()]
        assert len(cells) == average["seeds"] == 2
        mean = sum(c["win_rate"]["mean"] for c in cells) / 2
        assert average["win_rate"]["mean"] == pytest.approx(mean)
        assert average["second_judge"]["mean"] == pytest.approx(1 - mean)
    assert len(found["averages"]) == 2
    page = (tmp_path / "run/sweep.md").read_text()
    assert "## Over the seeds" in page
    assert "second judge, points" in page and "from 2 seeds" in page
    assert "of the mean between seeds" in " ".join(capsys.readouterr().out.split())


def test_a_cell_that_breaks_off_is_reported_and_the_rest_runs(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    grid = ["--grid", "learning_rate=1e-4,1e30"]
    assert main(["sweep", str(tiny_run), *grid, "algorithm.iterations=1", *BRIEF]) == 1
    result = json.loads((tmp_path / "run/sweep.json").read_text())
    assert [c["name"] for c in result["cells"]] == ["learning_rate=1e-4"]
    assert "gradient norm" in result["failed"]["learning_rate=1e30"]
    assert "broke off" in capsys.readouterr().out


def test_a_cell_whose_configuration_is_not_read_is_run_again(tiny_run: Path) -> None:
    config = load_config(tiny_run)
    directory = RunDirectory(config.output_dir)
    directory.path.mkdir(parents=True)
    directory.summary.path.write_text("{}")
    for text in ("algorithm: {of_a_later_version: 1}", "[", "model: {name_or_path: x}"):
        directory.config.write_text(text)
        assert not is_finished(Cell("a", {}, config))


def test_what_a_cell_lacks_is_said_before_any_is_run(
    tiny_run: Path, capsys: pytest.CaptureFixture
) -> None:
    text = tiny_run.read_text().replace("oracle: {target_words: 2}", "oracle: {name: matrix}")
    tiny_run.write_text(text)
    game = tiny_run.parent / "game.json"
    game.write_text(json.dumps({"matrix": [[0.5, 0.6], [0.4, 0.5]], "names": ["a", "b"]}))
    grid = ["--grid", f"oracle.game={game},none.json"]
    assert main(["sweep", str(tiny_run), *grid]) == 2
    captured = capsys.readouterr()
    assert "none.json: oracle.game none.json: no such file" in captured.err
    assert "generate" not in captured.out and not list(tiny_run.parent.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "tau_eta_ratio=0.5,2"], "cell tau_eta_ratio=2"),
        (["--grid", "tau_eta_ratio=0.1,1", "--markdown", "none/x.md"], "--markdown none/x.md"),
        (["--grid", "tau=0.1,1"], "unknown option tau"),
        (["--grid", "eta=0.1,1", "--judge", "name=none"], "--judge name=none: expected oracle.key"),
        (["--grid", "eta=0.1,1", "--judge", "oracle.nam=none"], "--judge: unknown option"),
        (["--grid", "eta=0.1,1", "--judge", "oracle.target_words=2"], "oracle of the cells"),
    ],
)
def test_bad_input(
    tiny_run: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert main(["sweep", str(tiny_run), *arguments]) == 2
    captured = capsys.readouterr().err.strip()
    assert words in captured and "\n" not in captured
    assert not (tiny_run.parent / "run").exists()


AXIS = Axis("algorithm.ref_update_interval", ("1", "1000"))


def sweep_of(tiny_run: Path, shift: float, joint: Interval, **options: Any) -> Sweep:
    """Two cells whose win rates differ by `shift` on every prompt, give or take."""
    config = load_config(tiny_run)
    noise = np.linspace(-0.2, 0.2, 40)
    results = []
    for value, extra in zip(AXIS.values, (shift, 0.0), strict=True):
        wins = 0.5 + noise + extra
        rate = Interval(wins.mean(), wins.mean() - 0.04, wins.mean() + 0.04)
        cell = Cell(f"ref_update_interval={value}", {AXIS.key: value}, config)
        results.append(
            Result(cell, tiny_run, rate, rate, wins, rate, wins, 9.0, [], None, "same", 1.0,
                   tuple(range(40)), noise)
        )  # fmt: skip
    versus = Interval(0.5 + shift, 0.45 + shift, 0.55 + shift)
    difference = Interval(joint.mean, joint.low + 0.01, joint.high - 0.01)
    effect = Effect(AXIS, "1", "1000", difference, joint, versus, 1)
    cells = [r.cell for r in results]
    made = Sweep(tiny_run, [AXIS], cells, results, {}, [effect], [], [], {})
    return dataclasses.replace(made, **options)


def test_conclusions_follow_the_intervals(tiny_run: Path) -> None:
    clear = " ".join(conclusions(sweep_of(tiny_run, 0.1, Interval(0.1, 0.05, 0.15))))
    assert "(moving reference) is higher" in clear
    assert "excludes 0" in clear and "1 of 2 settings" in clear
    worse = " ".join(conclusions(sweep_of(tiny_run, -0.1, Interval(-0.1, -0.15, -0.05))))
    assert "(static reference) is higher" in worse and "1 have one below it" in worse
    vague = " ".join(conclusions(sweep_of(tiny_run, 0.0, Interval(0.0, -0.03, 0.03))))
    assert "no difference is shown" in vague and "is higher" not in vague
    assert "not shown to be the best" in vague and "includes 50 %" in vague
    barely = " ".join(conclusions(sweep_of(tiny_run, 0.01, Interval(0.01, -0.005, 0.025))))
    assert "once all comparisons of this sweep are counted" in barely and "is higher" not in barely
    assert "how much another seed would change is not measured" in clear


def test_few_prompts_give_no_conclusion(tiny_run: Path) -> None:
    """Every interval shows a difference, of nine prompts."""
    sweep = sweep_of(tiny_run, 0.1, Interval(0.1, 0.05, 0.15))
    few = [dataclasses.replace(r, wins=r.wins[:9]) for r in sweep.results]
    text = " ".join(conclusions(dataclasses.replace(sweep, results=few)))
    assert "9 held-out prompts are too few" in text
    assert "is higher" not in text and "settings have" not in text


def test_what_is_not_comparable_is_said(tiny_run: Path) -> None:
    sweep = sweep_of(tiny_run, 0.1, Interval(0.1, 0.05, 0.15))
    note = "not comparable (3% overlap)"
    apart = [dataclasses.replace(r, controlled=NOWHERE, not_comparable=note) for r in sweep.results]
    sweep = dataclasses.replace(sweep, results=apart, summary={"versions": {}, "device": "cpu"})
    assert "0 of 2 lie above 50 % with their interval; 2 cannot be compared" in " ".join(
        conclusions(sweep)
    )
    assert render(sweep, "comal-fast sweep", "x.png").count(note) == 2
    assert json.loads(json.dumps(to_json(sweep)))["cells"][0]["length_controlled"] is None
