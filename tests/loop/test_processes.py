"""Phases in processes of their own: as if they ran here, whoever is killed."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import computing
from comal_fast.config import load_config
from comal_fast.config.sizes import parse_bytes
from comal_fast.errors import InputError
from comal_fast.loop import phase_runner, run_all
from comal_fast.system.processes import run_apart


@pytest.mark.parametrize(
    ("work", "arguments", "error", "words"),
    [
        (parse_bytes, ("x", "size"), InputError, "size: 'x' is no size"),
        (int, ("x",), ValueError, "invalid literal"),
        (operator.truediv, (1, 0), ZeroDivisionError, "division by zero"),
        (signal.raise_signal, (signal.SIGKILL,), InputError, "killed .SIGKILL.; out of memory"),
        (signal.raise_signal, (signal.SIGINT,), KeyboardInterrupt, None),
    ],
)
def test_errors_come_back(
    work: Callable[..., Any], arguments: tuple[Any, ...], error: type[BaseException], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        run_apart(work, *arguments)
    notes = getattr(caught.value, "__notes__", [])
    assert bool(notes) == (
        error in (ValueError, ZeroDivisionError)
    )  # only a fault of ours says where it was


def test_what_ends_well_returns() -> None:
    run_apart(operator.truediv, 1, 2)


def test_many_threads_after_an_import_that_computed() -> None:
    """A pool of threads that came up before a fork would be waited for, and for ever."""
    script = Path(computing.__file__)
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(script.parent)}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def start(config: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "comal_fast", "run", str(config), "phases=process"]
    return subprocess.Popen(
        [*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> list[int]:
    """From /proc: what `pid` started, and what that started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grand for child in found for grand in children(child)]


def wait_for(condition: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return value


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """(every artefact that holds no times, the metrics rows without times and memory)."""
    kinds = ("*.safetensors", "*.parquet", "evaluation.json", "diagnostics.json")
    every = (f for kind in kinds for f in run.rglob(kind) if f.parent.name != "metrics")
    files = {str(f.relative_to(run)): f.read_bytes() for f in every}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("perf/", "mem/")
    return files, [{k: v for k, v in r.items() if not k.startswith(timed)} for r in rows]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_child_and_killed_parent_end_as_inline(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    longer = "training.num_train_epochs=12"
    output = tmp_path / "apart"
    arguments = (longer, f"output_dir={output}")

    run = start(tiny_run, *arguments)
    wait_for((output / "iterations/0001/checkpoint").exists)
    (phase,) = (p for child in children(run.pid) for p in children(child))
    os.kill(phase, signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if "comal-fast" in line]
    assert run.returncode == 2 and len(lines) == 1 and "SIGKILL" in lines[0], errors
    assert not (output / "iterations/0001/model").exists()

    run = start(tiny_run, *arguments)
    wait_for((output / "iterations/0002/checkpoint").exists)
    family = children(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), seconds=20)
    run.communicate()
    assert not (output / "iterations/0002/model").exists()

    run = start(tiny_run, *arguments)
    printed, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert "train π_2" in printed and "train π_1" not in printed

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_all(load_config(tiny_run, [longer, f"output_dir={tmp_path / 'inline'}", "phases=inline"]))
    torch.set_num_threads(before)
    ours, theirs = outcome(output), outcome(tmp_path / "inline")
    assert ours[0] == theirs[0]
    key = json.dumps
    assert sorted(map(key, ours[1])) == sorted(map(key, theirs[1]))


@pytest.mark.slow
def test_ctrl_c_ends_both(tiny_run: Path, tmp_path: Path) -> None:
    """Sent to the parent alone, as by `kill -INT`: one message, no traceback, nothing left."""
    run = start(tiny_run, "training.num_train_epochs=40", f"output_dir={tmp_path / 'run'}")
    wait_for((tmp_path / "run/iterations/0001/checkpoint").exists)
    family = children(run.pid)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "nothing finished is lost" in errors and "Traceback" not in errors
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), seconds=20)


def test_who_runs_where(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comal_fast.context import Context

    def apart(*overrides: str) -> bool:
        return phase_runner(Context(load_config(tiny_run, overrides))).func is run_apart

    assert not apart() and not apart("phases=inline") and apart("phases=process")
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not apart()
    from comal_fast.loop import open_run

    config = load_config(tiny_run, ["phases=process"])
    with pytest.raises(ValueError, match="phases: process under torchrun with 2"), open_run(config):
        pass
