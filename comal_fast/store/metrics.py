"""metrics.jsonl: rows of phases; a phase that runs again replaces its own rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comal_fast.store import sinks
from comal_fast.store.files import write_text

Row = dict[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """All whole rows (a kill can leave a torn last line)."""
    return read_rows(path)[0]


def read_rows(path: Path) -> tuple[list[Row], int]:
    """(all whole rows, how many lines are none)."""
    rows, torn = [], 0
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        if not line:
            continue
        try:
            row = json.loads(line)
            whole = isinstance(row["phase"], str) and isinstance(row["iteration"], int)
        except (ValueError, TypeError, KeyError, RecursionError):
            whole = False
        if whole:
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def write_metrics(path: Path, rows: list[Row]) -> None:
    """Write the whole file anew."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class PhaseMetrics:
    """The rows of one phase of one iteration, replacing what an earlier attempt left.

    Without a path they are made, but neither written nor told. `peak`: peak memory of the phase so
    far, GiB.
    """

    def __init__(
        self, path: Path | None, phase: str, iteration: int, peak: Callable[[], float]
    ) -> None:
        self.path, self._peak = path, peak
        self._head = {"phase": phase, "iteration": iteration}
        if path is not None:
            own = (phase, iteration)
            rows = read_metrics(path)
            write_metrics(path, [r for r in rows if (r["phase"], r["iteration"]) != own])

    def log(self, values: Mapping[str, Any]) -> Row:
        """Append one row, and return it."""
        row = {**self._head, **values, "mem/peak_gib": self._peak()}
        self.replay([row])
        if self.path is not None:
            sinks.tell(row)
        return row

    def replay(self, rows: list[Row]) -> None:
        """Append rows that were logged before, as they are."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
