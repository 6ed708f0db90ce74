"""The losses of a tiny run, as they have always been: what changes them says so here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comal_fast.cli import main

# of the first iteration; its samples, and so these, come from the seeds of tests/support/tiny.py
GOLDEN = [99.99994, 104.19959, 36.75512, 106.17505, 73.45796, 45.03956]


def test_the_losses_are_the_same(tiny_run: Path) -> None:
    given = ["training.backend=torch", "pairing.labels=hard"]
    assert main(["run", str(tiny_run), *given]) == 0
    lines = (tiny_run.parent / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["phase"] == "train"]
    losses = [row["loss"] for row in rows if row["iteration"] == 1]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)
