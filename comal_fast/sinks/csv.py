"""csv: logging/csv/PHASE.csv, a file a phase, for a spreadsheet. It holds what metrics.jsonl does.

Written anew when a run goes on, and where a row brings a new column.
"""

from __future__ import annotations

import csv
from pathlib import Path

from comal_fast.sinks.base import ITERATION, STEP, Opened, Point, Result, Sink, TextTable
from comal_fast.store.files import replacing


def make() -> Sink:
    """The sink."""
    return Csv()


class Csv(Sink):
    """Columns `iteration`, `step` (since the run began), then the measures."""

    anew = True

    def open(self, run: Opened) -> str:
        self._folder = run.folder
        for old in run.folder.glob("*.csv"):
            old.unlink()
        self._columns: dict[str, list[str]] = {}
        run.folder.mkdir(parents=True, exist_ok=True)
        return str(run.folder)

    def tell(self, points: list[Point]) -> None:
        for phase in {p.phase for p in points}:
            self._append(phase, [p for p in points if p.phase == phase])

    def table(self, table: TextTable) -> None:
        path = self._folder / f"{table.name}-{table.iteration}.csv"
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        with replacing(path) as temporary:
            _write(temporary, table.columns, rows)

    def result(self, result: Result) -> None:
        for table in result.tables:
            self.table(table)

    def _append(self, phase: str, points: list[Point]) -> None:
        path = self._folder / f"{phase}.csv"
        rows: list[dict[str, object]] = [
            {ITERATION: p.iteration, STEP: p.step}
            | {name.removeprefix(f"{phase}/"): value for name, value in p.values.items()}
            for p in points
        ]
        columns = self._columns.get(phase, [])
        missing = dict.fromkeys(name for row in rows for name in row if name not in columns)
        if missing:
            columns = self._columns[phase] = [*columns, *missing]
            there = _read(path)
            with replacing(path) as temporary:
                _write(temporary, columns, [*there, *rows])
        else:
            with path.open("a", encoding="utf-8", newline="") as stream:
                csv.DictWriter(stream, columns).writerows(rows)


def _read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def _write(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
