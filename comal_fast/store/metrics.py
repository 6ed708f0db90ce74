"""metrics.jsonl: rows of phases; a phase that runs again replaces its own rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from comal_fast.store.files import write_text

Row = dict[str, Any]


def read_metrics(path: Path) -> list[Row]:
    """All whole rows (a kill can leave a torn last line)."""
    return read_rows(path)[0]


def read_rows(path: Path) -> tuple[list[Row], int]:
    """(all whole rows, how many lines are none)."""
    return _parse(path.read_bytes()) if path.is_file() else ([], 0)


def _parse(content: bytes) -> tuple[list[Row], int]:
    rows, torn = [], 0
    for line in content.split(b"\n"):
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


class MetricsReader:
    """The rows of a file that another thread or process writes, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forget()

    def forget(self) -> None:
        """Read all of it the next time."""
        self._stream: BinaryIO | None = None  # kept open: no later file has its inode
        self._rows: list[Row] = []

    def changed(self) -> bool:
        """Whether there is something to read."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return False
        stream = self._stream
        return stream is None or not self._same(about) or about.st_size != stream.tell()

    def rows(self) -> list[Row]:
        """All whole rows: what was appended is read, of a file that was replaced everything."""
        try:
            if not self._same(self.path.stat()):
                self.forget()
                self._stream = self.path.open("rb")
        except FileNotFoundError:
            self.forget()
            return []
        assert self._stream is not None
        start = self._stream.tell()
        whole, newline, _ = self._stream.read().rpartition(b"\n")
        self._stream.seek(start + len(whole) + len(newline))
        self._rows = self._rows + _parse(whole)[0]
        return self._rows

    def _same(self, about: os.stat_result) -> bool:
        """Whether the file at the path is the one that is open, and has not shrunk."""
        if self._stream is None:
            return False
        known = os.fstat(self._stream.fileno())
        return known.st_ino == about.st_ino and about.st_size >= self._stream.tell()


class PhaseMetrics:
    """The rows of one phase of one iteration, replacing what an earlier attempt left.

    Without a path they are made, but not written. `peak`: peak memory of the phase so
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
        return row

    def replay(self, rows: list[Row]) -> None:
        """Append rows that were logged before, as they are."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
