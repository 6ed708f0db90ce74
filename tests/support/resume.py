"""Runs of comal-fast in a process of their own, killed where a test says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from forked import python

DRIVER = Path(__file__).parents[1] / "loop" / "resume_driver.py"


def start(config: Path, output: Path, target: str = "never", count: int = 0) -> int:
    """`comal-fast run`, killed in the count-th call of `target` (module:function); its status."""
    command = [python(), str(DRIVER), target, str(count), "run", str(config)]
    done = subprocess.run([*command, f"output_dir={output}"], capture_output=True, text=True)
    if done.returncode not in (0, -9):
        pytest.fail(done.stderr)
    return done.returncode


def comparable(output: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times and memory."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "mem/"))} for row in rows]


def contents(run: Path) -> dict[str, bytes]:
    """What the phases wrote, byte by byte, but their metrics, which hold times."""
    files = (f for f in (run / "iterations").rglob("*") if f.is_file())
    return {
        str(f.relative_to(run)): f.read_bytes()
        for f in files
        if ".bad" not in str(f) and f.parent.name != "metrics"
    }


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """From now on training raises `error` instead of taking that step, counted from 0."""
    from comal_fast.training.trainer import Trainer

    take = Trainer.optimizer_step

    def breaking(self: Trainer) -> dict[str, Any]:
        if self.step == step:
            raise error
        return take(self)

    monkeypatch.setattr(Trainer, "optimizer_step", breaking)
