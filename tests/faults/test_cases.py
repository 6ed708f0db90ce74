"""Situations from public reports, each a folder with a program that says whether it is right."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from forked import python

CASES = sorted((Path(__file__).parents[3] / "shared" / "cases").glob("*/case.py"))


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="the cases are not at hand")
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.parent.name)
def test_it_is_right(case: Path) -> None:
    done = subprocess.run([python(), case], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
