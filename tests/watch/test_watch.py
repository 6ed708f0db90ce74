"""`watch`: what it says of a run that another process makes, that has ended, that fails."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.store.directory import RunDirectory
from comal_fast.system.terminal import progress, telling
from comal_fast.watch.screen import screen
from comal_fast.watch.snapshot import Phase, snapshot

COMMAND = [sys.executable, "-m", "comal_fast"]


def shown(path: Path, width: int, **changes: Any) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(screen(replace(snapshot(path), **changes), width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return str(text)


@pytest.fixture
def finished(tiny_run: Path) -> Path:
    config = load_config(tiny_run, ["training.save_steps=0"])
    run_all(config)
    return Path(config.output_dir)


def test_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shot = snapshot(finished)
    rows = RunDirectory(finished).rows()
    assert shot.state == "finished" and not shot.running and shot.phase is None
    assert shot.seconds == pytest.approx(sum(r["perf/seconds"] for r in rows))
    losses = [r["loss"] for r in rows if r["phase"] == "train" and r["iteration"] == 2]
    assert shot.curves["loss"] == losses
    summary = RunDirectory(finished).read_summary()
    assert summary is not None
    rate = shot.iterates[-1]["win_rate"]
    assert rate == {k: summary["win_rate"][k] for k in ("mean", "ci95")}
    text = shown(finished, 100)
    assert f"{rate['mean']:.1%}" in text and "inpo, seed 0" in text
    capsys.readouterr()
    assert main(["watch", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shot.to_json()
    assert main(["watch", str(finished)]) == 0  # a pipe: once
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("width", [30, 60, 100])
def test_width(finished: Path, width: int) -> None:
    phase = Phase("train", 2, 5, 20, "steps", 0.5, 30.0)
    text = shown(finished, width, running=True, phase=phase, seconds_left=90.0)
    assert "5 of 20" in " ".join(text.split()) and "1 min 30 s" in " ".join(text.split())


def test_time_left(finished: Path) -> None:
    """By what the same phases took before: half of iteration 2's training and what follows it."""
    directory = RunDirectory(finished)
    rows = [r for r in directory.rows() if r["iteration"]]
    took = {
        name: sum(r["perf/seconds"] for r in rows if (r["phase"], r["iteration"]) == (name, 1))
        for name in ("train", "evaluate", "diagnose")
    }
    for folder in (directory.iteration(2),):
        for artefact in (folder.model, folder.evaluation, folder.diagnostics, folder.eval_samples):
            folder.log(artefact).discard()
            artefact.discard()
    kept = [r for r in directory.rows() if (r["phase"], r["iteration"]) < ("u", 2)]
    kept = [r for r in kept if r["iteration"] < 2 or r["phase"] in ("generate", "judge", "pair")]
    directory.metrics.write_text("".join(json.dumps(r) + "\n" for r in kept))
    directory.summary.discard()
    from comal_fast.store.files import locked

    directory.progress.write_text(
        json.dumps({"phase": "train", "iteration": 2, "done": 5, "total": 10, "rate": 0.625})
    )
    with locked(finished, "output_dir", "taken"):
        shot = snapshot(finished)
    assert shot.running and shot.phase == Phase("train", 2, 5, 10, "", 0.625, 8.0)
    assert shot.seconds_left == pytest.approx(8.0 + took["evaluate"] + took["diagnose"])
    assert not snapshot(finished).running  # nobody holds it: what the file says is of no matter


def test_first_iteration(tiny_run: Path) -> None:
    """Nothing is promised before every phase was seen once."""
    from comal_fast.loop import open_run
    from comal_fast.phases import generate

    config = load_config(tiny_run)
    with open_run(config) as context:
        generate.run(context, 1)
        shot = snapshot(Path(config.output_dir))
        assert shot.running and shot.seconds_left is None
        assert shot.phase is not None and shot.phase.name == "generate"


def test_telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar of a phase is told to a file, which goes when the phase ends."""
    monkeypatch.setattr("comal_fast.system.terminal._TOLD_SECONDS", 0.0)
    path = tmp_path / "progress.json"
    with telling(path, "train", 3):
        assert json.loads(path.read_text()) == {"phase": "train", "iteration": 3}
        with progress("train π_3", 4, "steps") as advance:
            advance()
            told = json.loads(path.read_text())
            assert (told["done"], told["total"], told["unit"]) == (1, 4, "steps")
    assert not path.exists()


@pytest.mark.slow
def test_another_process(tiny_run: Path, tmp_path: Path) -> None:
    """In a terminal it follows a run of another process to its end, and ends with it."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    words = ["run", str(tiny_run), "training.num_train_epochs=20"]
    run = subprocess.Popen([*COMMAND, *words], env=env, stdout=subprocess.DEVNULL)
    folder = tmp_path / "run"
    while not (folder / "iterations/0001/logps.parquet").exists():
        assert run.poll() is None
        time.sleep(0.1)
    ours, theirs = pty.openpty()
    watch = subprocess.Popen(
        [*COMMAND, "watch", str(folder), "--interval", "0.2"], env=env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while select.select([ours], [], [], 120)[0]:
            try:
                some = os.read(ours, 65536)
            except OSError:  # its end closed
                break
            if not some:
                break
            seen += some
    finally:
        os.close(ours)
    assert run.wait(60) == 0 and watch.wait(60) == 0
    text = seen.decode()
    assert "running" in text and "loss" in text and " left" in text and "finished" in text


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "no such run directory" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--interval", "0"]) == 2
    assert "--interval" in capsys.readouterr().err
