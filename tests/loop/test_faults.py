"""What went wrong: one line for what the user gave, a traceback for a fault of the program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.system.doing import doing, done_when
from comal_fast.system.processes import run_apart
from forked import python
from resume import break_at, contents

FAULTS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.zeros(2) + np.zeros(3),
    "zip": lambda: list(zip([1], [1, 2], strict=True)),
    "torch": lambda: torch.zeros(2) @ torch.zeros(3),
    "int": lambda: int("x"),
    "index": lambda: [][0],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_keeps_its_traceback(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    """With one line before it: that it is one, what was being done, how to go on; status 1."""
    monkeypatch.setattr("comal_fast.phases.pair.merged", lambda items: FAULTS[name]())
    assert main(["run", str(tiny_run)]) == 1
    lines = capsys.readouterr().err.splitlines()
    first, second = lines[(at := [x[:10] for x in lines].index("comal-fast")) : at + 2]
    assert first.startswith("comal-fast: a fault of the program, in pair, iteration 1; nothing")
    assert first.endswith(f"To go on from here: comal-fast run {tiny_run}")
    assert second == "Traceback (most recent call last):"
    monkeypatch.undo()
    assert main(["run", str(tiny_run)]) == 0  # and on it goes


def test_it_says_the_step(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    break_at(monkeypatch, 2, RuntimeError("no reason"))
    assert main(["run", str(tiny_run)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"in train, iteration 1: train π_1 \(inpo\), 2 of \d+ steps; nothing", error)
    assert "RuntimeError: no reason" in error


def broken() -> None:
    with doing("train, iteration 2"), doing("step 7"):
        np.zeros(2) + np.zeros(3)


def test_what_was_being_done_crosses_processes() -> None:
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        run_apart(broken)
    assert not isinstance(caught.value, InputError)
    assert done_when(caught.value) == "train, iteration 2: step 7"
    assert "np.zeros(2) + np.zeros(3)" in "".join(caught.value.__notes__)


def test_what_the_user_gave_is_one_line(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    """From a phase in a process of its own too."""
    config = load_config(tiny_run, ["phases=process"])
    run_all(config)
    foreign = Path(config.output_dir) / "iterations/0001/model/model-00002-of-00002.safetensors"
    foreign.write_bytes(b"")
    assert main(["run", str(tiny_run), "phases=process"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(foreign) in error and "move it elsewhere" in error


def test_a_damaged_file_is_named_and_made_again(
    tiny_run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", str(tiny_run)]) == 0
    run = tiny_run.parent / "run"
    before, rows = contents(run), (run / "metrics.jsonl").read_bytes()
    names = ("evaluation.json", "model/comal.json", "model/model.safetensors", "judgments.parquet")
    for name in names:
        file = run / "iterations/0001" / name
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 4
        for damaged in (b"", whole[: len(whole) // 2], bytes(flipped)):
            file.write_bytes(damaged)
            capsys.readouterr()
            assert main(["run", str(tiny_run)]) == 0, name
            said = capsys.readouterr()
            assert f"{file}: damaged" in said.out
            assert (
                (file.parent if "/" in name else file)
                .with_name(f"{name.split('/')[0]}.bad")
                .exists()
            )
            assert contents(run) == before
    (run / "metrics.jsonl").write_bytes(rows.replace(b'"loss": ', b'"loss": 1', 1))
    assert main(["run", str(tiny_run)]) == 0
    assert "not what was logged" in capsys.readouterr().out
    assert (run / "metrics.jsonl.bad").exists()
    assert len((run / "metrics.jsonl").read_bytes().splitlines()) == len(rows.splitlines())


def test_a_phase_alone_names_what_is_damaged(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", str(tiny_run)]) == 0
    samples = tiny_run.parent / "run" / "iterations/0001/samples.parquet"
    samples.write_bytes(samples.read_bytes()[:100])
    for phase in ("judge", "logps"):
        assert main([phase, str(tiny_run), "--iteration", "1"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"comal-fast: error: {samples}: damaged")


def test_a_reader_that_goes_away(tiny_run: Path) -> None:
    """`comal-fast config schema | head -1` is no fault."""
    command = f"{sys.executable} -m comal_fast config explain | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("model.name_or_path") and done.stderr == ""


BREAKS = """
from typing import Literal
from comal_fast.config.oracle import OracleConfig
from comal_fast.oracles import Oracle, register

class Away(OracleConfig):
    name: Literal["away"] = "away"

@register(Away)
class AwayOracle(Oracle):
    def __init__(self, options): pass
    def compare(self, comparisons): raise BrokenPipeError("the judge has gone")
    def fingerprint(self): return "away"
"""


@pytest.mark.parametrize("phases", ["inline", "process"])
def test_a_pipe_that_is_not_stdout_is_a_fault(tiny_run: Path, phases: str) -> None:
    """A judge at the other end of a socket, say."""
    (tiny_run.parent / "away.py").write_text(BREAKS)
    text = tiny_run.read_text().replace("oracle: {target_words: 2}", "oracle: {name: away}")
    tiny_run.write_text(f"{text}plugins: [away.py]\n")
    words = [python(), "-m", "comal_fast", "run", "tiny.yaml", f"phases={phases}"]
    done = subprocess.run(words, cwd=tiny_run.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a fault of the program, in judge, iteration 1" in done.stderr
    assert "BrokenPipeError: the judge has gone" in done.stderr


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("no copies")
        self.held = lambda: None


class Closed(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


def raises(kind: str) -> None:
    with doing("judge, iteration 1"):
        raise Unpicklable if kind == "unpicklable" else Closed("itself")


def test_an_error_that_cannot_be_pickled_says_the_same() -> None:
    with pytest.raises(RuntimeError, match="Unpicklable: no copies") as caught:
        run_apart(raises, "unpicklable")
    assert done_when(caught.value) == "judge, iteration 1"
    assert str(caught.value).count("Traceback") == 1


def test_an_error_that_takes_no_attribute_is_itself() -> None:
    with pytest.raises(Closed, match="itself"):
        raises("closed")


def test_the_command_to_go_on_by_can_be_pasted(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("comal_fast.phases.pair.merged", lambda items: FAULTS["int"]())
    given = ["run", str(tiny_run), "oracle={name: criteria, target_words: 2}"]
    assert main(given) == 1
    line = re.search(r"To go on from here: comal-fast (.*)", capsys.readouterr().err)
    assert line is not None and shlex.split(line[1]) == given


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("output_dir=taken", "output_dir taken: "),
        ("model.name_or_path=package:no.such", "the package no.such is not installed"),
        ("model.name_or_path=package:.x", "the package .x is not installed"),
    ],
)
def test_what_is_no_place(
    tiny_run: Path,
    option: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tiny_run.parent)
    Path("taken").write_text("")
    assert main(["run", str(tiny_run), option]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_template_that_refuses(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    model = Path(load_config(tiny_run).model.name_or_path)
    copy = tiny_run.parent / "refusing"
    shutil.copytree(model, copy)
    template = "{{ raise_exception('System role not supported') }}"
    (copy / "chat_template.jinja").write_text(template)
    assert main(["run", str(tiny_run), f"model.name_or_path={copy}"]) == 2
    error = capsys.readouterr().err
    assert "chat template refuses this conversation" in error and "not supported" in error
    assert error.count("\n") == 1


def test_a_checkpoint_that_is_torn(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    break_at(monkeypatch, 4, ValueError("no number"))
    given = ["run", str(tiny_run), "training.save_steps=2"]
    assert main(given) == 1
    monkeypatch.undo()
    folder = tiny_run.parent / "run" / "iterations/0001/checkpoint"
    (folder / "trainer.json").write_text('{"step"')
    capsys.readouterr()
    assert main(given) == 0
    said = capsys.readouterr().out
    assert f"{folder / 'trainer.json'}: damaged" in said and "set aside as checkpoint.bad" in said
