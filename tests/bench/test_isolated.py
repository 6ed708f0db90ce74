"""Processes of their own: results, errors in one line, deaths, environment."""

from __future__ import annotations

import operator
import os
import signal
from pathlib import Path

import pytest

from bench.measure.isolated import Failed, run_isolated


def test_the_result_comes_back_from_another_process() -> None:
    assert run_isolated(os.getpid) not in (0, os.getpid())


def test_variables_stand_before_the_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_INHERITED", "yes")
    given = {"MALLOC_TRIM_THRESHOLD_": "0"}
    seen = run_isolated(Path.read_text, Path("/proc/self/environ"), environment=given).split("\0")
    assert {"MALLOC_TRIM_THRESHOLD_=0", "BENCH_INHERITED=yes"} <= set(seen)
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ


def test_an_error_is_one_line() -> None:
    with pytest.raises(Failed, match="^ZeroDivisionError: division by zero$"):
        run_isolated(operator.truediv, 1, 0)


def test_a_death_is_said() -> None:
    with pytest.raises(Failed, match=r"^its process died \(SIGKILL\); out of memory\?$"):
        run_isolated(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(Failed, match="exit status 3"):
        run_isolated(os._exit, 3)
