"""The peak of a phase: its own, and on every row."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
import torch

from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.system.peak import peak_gib, reset_peak

CPU = torch.device("cpu")


def touch(gib: float) -> None:
    """Hold that much memory for a moment."""
    with mmap.mmap(-1, int(gib * 2**30)) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="not allowed here")
def test_peak_is_of_the_phase() -> None:
    reset_peak(CPU)
    before = peak_gib(CPU)
    touch(0.25)
    high = peak_gib(CPU)
    assert high == pytest.approx(before + 0.25, abs=0.05)
    reset_peak(CPU)
    assert peak_gib(CPU) == pytest.approx(before, abs=0.05)


def test_every_phase_records_its_own(tiny_run: Path) -> None:
    config = load_config(tiny_run, ["algorithm.iterations=1"])
    run_all(config)
    rows = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").open()]
    phases = {"generate", "judge", "pair", "logps", "train", "evaluate", "diagnose"}
    assert {row["phase"] for row in rows} == phases
    assert all(0.05 < row["mem/peak_gib"] < 64 for row in rows)
