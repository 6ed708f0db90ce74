"""Listing runs, and freeing the disk of a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import open_run, run_all
from comal_fast.phases import generate
from comal_fast.runs.clean import plan
from comal_fast.runs.listing import disk, entries
from comal_fast.store.directory import RunDirectory

BRIEF = ["training.num_train_epochs=1", "training.save_steps=0"]


@pytest.fixture
def shelf(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run, one that has begun, and one in a folder below that is at work."""
    folder = tmp_path / "shelf"
    run_all(load_config(tiny_run, [*BRIEF, f"output_dir={folder / 'done'}"]))
    begun = load_config(tiny_run, [*BRIEF, f"output_dir={folder / 'begun'}", "seed=7"])
    with open_run(begun) as context:
        generate.run(context, 1)
    (folder / "notes").mkdir()
    shutil.copytree(folder / "begun", folder / "below/third")
    return folder


def test_runs(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["runs", str(shelf), "--json"]) == 0
    begun, below, done = json.loads(capsys.readouterr().out)
    assert [r["path"] for r in (begun, below, done)] == ["begun", "below/third", "done"]
    assert done["state"] == "finished" and done["result"] == 2
    assert begun["state"] == "stopped, iteration 1 of 2: generate done"
    assert done["settings"] == {"seed": 0} and begun["settings"] == {"seed": 7}
    summary = RunDirectory(shelf / "done").read_summary()
    assert summary is not None
    assert done["win_rate"] == {k: summary["win_rate"][k] for k in ("mean", "ci95")}
    assert done["bytes"] == disk(shelf / "done")[0] > begun["bytes"] > 0
    assert done["changed"][-6] in "+-"  # local time with its zone
    with open_run(load_config(shelf / "begun/config.yaml")):
        states = {e.path: e.state for e in entries(shelf)}
    assert states["begun"].startswith("running") and states["below/third"].startswith("stopped")
    assert main(["runs", str(shelf)]) == 0
    assert "seed=0" in capsys.readouterr().out  # the others have 7
    for folder, words in ((shelf / "notes", "no run directory"), (shelf / "no", "no such folder")):
        assert main(["runs", str(folder)]) == 2
        assert words in capsys.readouterr().err


def test_clean(shelf: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says is what it frees; what stays can be read, and the run does not go on."""
    run = shelf / "done"
    directory = RunDirectory(run)
    before = disk(run)[0]
    found = plan(run, ["last"])
    assert found.kept == (2,) and found.freed == (1,)
    capsys.readouterr()
    assert main(["clean", str(run), "--keep", "last"]) == 0
    assert "nothing was deleted" in capsys.readouterr().out and directory.trained() == [1, 2]
    assert main(["clean", str(run), "--keep", "last", "--yes"]) == 0
    assert directory.trained() == [2]
    assert before - disk(run)[0] == pytest.approx(found.bytes, abs=8192)  # the note of it
    assert main(["report", str(run)]) == 0
    assert main(["compare", str(run)]) == 0
    assert main(["export", "model", str(run), str(shelf / "exported")]) == 0
    capsys.readouterr()
    assert main(["run", str(tiny_run), *BRIEF, f"output_dir={run}"]) == 2
    assert "`comal-fast clean` deleted weights" in capsys.readouterr().err
    assert directory.trained() == [2]


def test_what_is_kept(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shelf / "done"
    rates = {
        t: json.loads((run / f"iterations/{t:04d}/evaluation.json").read_text())["win_rates"]["0"]
        for t in (1, 2)
    }
    best = max(rates, key=lambda t: (rates[t]["mean"], t))
    assert plan(run, ["best"]).kept == (best,)
    assert plan(run, ["1", "last"]).kept == (1, 2) and not plan(run, ["1", "2"]).freed
    capsys.readouterr()
    for arguments, words in (
        ([str(run), "--keep", "first"], "--keep first: expected best, last or an iterate"),
        ([str(run), "--keep", "9"], "weights are there: 1, 2"),
        ([str(shelf / "begun")], "not finished"),
        ([str(shelf / "notes")], "not a run directory"),
    ):
        assert main(["clean", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
    with open_run(load_config(run / "config.yaml")):
        assert main(["clean", str(run), "--yes"]) == 2
        assert "a process is at work in it" in capsys.readouterr().err
