"""A short run of `make faults`: kills and damaged files, each ending right or with a line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")


@pytest.mark.slow
def test_twenty_of_them() -> None:
    given = ["--kills", "13", "--damages", "7", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, HARNESS, *given], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = map(int, re.findall(r"(\d+) (?:ended|stopped)", done.stdout))
    assert sum(counts) == 20 and ", 0 neither" in done.stdout
