"""The machine fails: no memory, a full disk, a scheduler's signal, a second process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comal_fast import loop
from comal_fast.cli import main
from comal_fast.generation.decode import Decoder
from comal_fast.model import logps
from comal_fast.store.directory import RunDirectory
from forked import python
from resume import break_at, comparable, contents

DRIVER = """
import resource, sys
from comal_fast.cli import main
from comal_fast.training.trainer import Trainer

# the gradients of a step may take so many MiB that the process does not have yet
accumulate = Trainer._accumulate
def limited(self, *given):
    size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ({room} << 20), resource.RLIM_INFINITY))
    try:
        return accumulate(self, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
Trainer._accumulate = limited
sys.exit(main(sys.argv[1:]))
"""


def wide(tiny_run: Path, *more: str) -> list[str]:
    """A run of the tiny model with one step of many tokens."""
    text = tiny_run.read_text().replace("max_tokens_per_microbatch: 300", "save_minutes: 0")
    text = text.replace("train_batch_size: 2", "train_batch_size: 2000")
    text = text.replace("num_generations: 3, max_new_tokens: 8, batch_size: 6",
                        "num_generations: 16, max_new_tokens: 200, batch_size: 16")  # fmt: skip
    text = text.replace("max_length: 128", "max_length: 400").replace("tions: 2,", "tions: 1,")
    tiny_run.write_text(text)
    return ["run", str(tiny_run), *more]


def limited(given: list[str], room: int) -> Any:
    code = DRIVER.format(room=room)
    return subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=300
    )


def train_rows(folder: Path) -> list[dict[str, Any]]:
    every = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in every if row["phase"] == "train"]


@pytest.mark.slow
def test_no_memory_in_training_halves_the_passes(tiny_run: Path, tmp_path: Path) -> None:
    """RLIMIT_AS, and the same losses as without it.

    In a process of its own, whose allocator has kept nothing of earlier phases.
    """
    given = [*wide(tiny_run)[1:], "--iteration", "1", "training.backend=torch"]
    for verb in ("generate", "judge", "pair", "logps"):
        assert cli(verb, *given, f"output_dir={tmp_path / 'calm'}").wait(300) == 0
    shutil.copytree(tmp_path / "calm", tmp_path / "tight")
    for folder, room in (("calm", 1 << 16), ("tight", 8)):
        done = limited(["train", *given, f"output_dir={tmp_path / folder}"], room)
        assert done.returncode == 0, done.stderr
    assert "out of memory in step 1: passes of" in done.stdout
    calm, tight = (train_rows(tmp_path / folder) for folder in ("calm", "tight"))
    budgets = [row["perf/microbatch_tokens"] for row in tight]
    assert budgets[-1] < 16384 and budgets == sorted(budgets, reverse=True)
    for a, b in zip(calm, tight, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def no_memory(*given: Any, **named: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("comal_fast.training.trainer.Trainer._backward", "holds a single pair already"),
        ("comal_fast.model.logps.predictor_states", "holds a single response of"),
        ("comal_fast.generation.transformers.Decoder.run", "to a single prompt at a time"),
        ("comal_fast.phases.pair.merged", "pair, iteration 1: out of memory (CUDA out of memory"),
    ],
)
def test_no_memory_at_all_is_a_line(
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    place: str,
    words: str,
) -> None:
    monkeypatch.setattr(place, no_memory)
    assert main(["run", str(tiny_run)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("comal-fast: error: ") and words in last
    monkeypatch.undo()
    assert main(["run", str(tiny_run)]) == 0


def test_less_memory_in_sampling_and_log_probs_gives_the_same(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = ["run", str(tiny_run), "algorithm.iterations=1"]
    assert main([*given, f"output_dir={tmp_path / 'calm'}"]) == 0
    enter, states = Decoder._enter, logps.predictor_states

    def enter_few(self: Decoder) -> None:
        if self.groups > 1 and len(self.waiting) < len(self.prompts):  # some have ended
            no_memory()
        enter(self)

    def few_states(model: Any, packed: Any) -> Any:
        return states(model, packed) if len(packed.response_cu_seqlens) < 4 else no_memory()

    monkeypatch.setattr(Decoder, "_enter", enter_few)
    monkeypatch.setattr(logps, "predictor_states", few_states)
    capsys.readouterr()
    assert main([*given, f"output_dir={tmp_path / 'tight'}"]) == 0
    assert "3 responses at a time from here on, not 6" in capsys.readouterr().out
    calm, tight = (RunDirectory(tmp_path / name).iteration(1) for name in ("calm", "tight"))
    assert calm.samples.read().equals(tight.samples.read())
    for a, b in zip(calm.logps.read().columns, tight.logps.read().columns, strict=True):
        np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), atol=1e-4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB, where the system allows one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def cli(*given: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python(), "-m", "comal_fast", *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_full_disk(tiny_run: Path, small_disk: Path, tmp_path: Path) -> None:
    """Whatever phase it comes in: a line, and the run goes on when there is room."""
    calm = cli("run", tiny_run, f"output_dir={tmp_path / 'calm'}")
    assert calm.wait(300) == 0
    filler = small_disk / "filler"
    for left in (8 << 10, 64 << 10, 700 << 10):  # bytes
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - left))
        run = cli("run", tiny_run, f"output_dir={small_disk / 'run'}")
        _, error = run.communicate(timeout=300)
        last = error.splitlines()[-1]
        assert run.returncode == 2 and last.startswith("comal-fast: error: "), error
        assert "No space left" in last or "the disk is full" in last
        filler.unlink()
    again = cli("run", tiny_run, f"output_dir={small_disk / 'run'}")
    assert again.wait(300) == 0 or "full" in again.communicate()[1]
    if again.returncode == 0:
        assert contents(small_disk / "run") == contents(tmp_path / "calm")


@pytest.mark.slow
def test_a_disk_that_is_read_only(tiny_run: Path, small_disk: Path) -> None:
    again = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(again, check=True)
    run = cli("run", tiny_run, f"output_dir={small_disk / 'run'}")
    _, error = run.communicate(timeout=120)
    assert run.returncode == 2 and "output_dir" in error.splitlines()[-1]
    assert "can't be written to" in error.splitlines()[-1]


def test_a_folder_that_vanishes(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Between two phases: a line, and the same command makes it all anew."""
    run, judge = tiny_run.parent / "run", loop.RUN["judge"]

    def gone(context: Any, iteration: int) -> None:
        shutil.rmtree(run)
        judge(context, iteration)

    monkeypatch.setitem(loop.RUN, "judge", gone)
    assert main(["run", str(tiny_run)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("comal-fast: error: ") and "iterations/0001/samples.parquet" in last
    monkeypatch.undo()
    assert main(["run", str(tiny_run)]) == 0


def test_a_clock_that_jumps(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back at every look: what is measured are durations of another clock."""
    now = [1e9]

    def jumping() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    assert main(["run", str(tiny_run), "algorithm.iterations=1"]) == 0
    rows = train_rows(tiny_run.parent / "run")
    assert all(0 < row["perf/seconds"] < 60 for row in rows)


def started(run: subprocess.Popen[str], file: Path, seconds: float = 120) -> None:
    """Wait until a run has written a file."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["inline", "process"])
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.nightly)],
    ids=lambda n: n.name,
)
def test_a_schedulers_signal(
    tiny_run: Path, tmp_path: Path, number: signal.Signals, phases: str
) -> None:
    """143, with a checkpoint of the very step, and the same end as without it."""
    text = tiny_run.read_text().replace("save_steps: 1,", "save_steps: 0,")
    tiny_run.write_text(text.replace("num_train_epochs: 2", "num_train_epochs: 20"))
    given = ["run", tiny_run, f"phases={phases}", "algorithm.iterations=1"]
    calm = cli(*given, f"output_dir={tmp_path / 'calm'}")
    assert calm.wait(300) == 0, calm.communicate()[1]
    output = tmp_path / "ended"
    run = cli(*given, f"output_dir={output}")
    started(run, output / "iterations/0001/logps.parquet")
    while not any('"step"' in x for x in (output / "metrics.jsonl").read_text().splitlines()):
        time.sleep(0.005)
    run.send_signal(number)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 143, error
    assert "nothing finished is lost. To go on from here: comal-fast run" in error
    kept = json.loads((output / "iterations/0001/checkpoint/trainer.json").read_text())
    assert kept["step"] == len(kept["rows"]) >= 1
    again = cli(*given, f"output_dir={output}")
    assert again.wait(300) == 0, again.communicate()[1]
    assert contents(output) == contents(tmp_path / "calm")
    steps = [r for r in comparable(output) if r["phase"] == "train"]
    assert steps == [r for r in comparable(tmp_path / "calm") if r["phase"] == "train"]


@pytest.mark.slow
def test_two_runs_in_one_directory(tiny_run: Path) -> None:
    """The second is refused while the first is there, and not by the lock of a dead one."""
    output = tiny_run.parent / "run"
    first = cli("run", tiny_run)
    started(first, output / "iterations/0000/eval_samples.parquet")
    first.send_signal(signal.SIGSTOP)
    second = cli("run", tiny_run)
    assert second.wait(120) == 2
    assert "another comal-fast is at work in it" in second.communicate()[1]
    first.kill()
    third = cli("run", tiny_run)
    assert third.wait(300) == 0, third.communicate()[1]


def watch_restore(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that training goes on from, as they come."""
    from comal_fast.training.trainer import Trainer

    seen: list[int] = []
    restore = Trainer.restore

    def watched(self: Trainer, place: Path) -> list[dict[str, Any]]:
        found = restore(self, place)
        seen.append(self.step)
        return found

    monkeypatch.setattr(Trainer, "restore", watched)
    return seen


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the newest is damaged, the one before it is gone on from."""
    break_at(monkeypatch, 5, KeyboardInterrupt())
    given = ["run", str(tiny_run), "training.keep_checkpoints=3"]
    assert main(given) == 130
    monkeypatch.undo()
    folder = tiny_run.parent / "run/iterations/0001"
    names = ("checkpoint", "checkpoint-1", "checkpoint-2")
    held = [json.loads((folder / n / "trainer.json").read_text())["step"] for n in names]
    assert held == [5, 4, 3] and not (folder / "checkpoint-3").exists()
    (folder / "checkpoint" / "trainer.json").write_text("{")
    seen = watch_restore(monkeypatch)
    assert main(given) == 0
    assert seen[0] == 4 and not list(folder.glob("checkpoint-?"))


@pytest.mark.slow
def test_ended_while_a_checkpoint_is_replaced(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was moved away is gone on from, and is not there in the end."""
    folder = tiny_run.parent / "run/iterations/0001"
    rename = Path.rename

    def ending(self: Path, target: Path) -> Path:
        if self.name == ".checkpoint.partial" and (folder / ".checkpoint.old").exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", ending)
    assert main(["run", str(tiny_run)]) == 130
    monkeypatch.undo()
    assert not (folder / "checkpoint").exists() and (folder / ".checkpoint.old").exists()
    seen = watch_restore(monkeypatch)
    assert main(["run", str(tiny_run)]) == 0
    assert seen[0] == 1 and not list(folder.glob("*checkpoint*"))
