"""metrics.jsonl: rows of phases; a phase that runs again replaces its own rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comal_fast.store.artefacts import write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows (a kill can leave a torn last line)."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class PhaseMetrics:
    """The rows of one phase of one iteration, replacing what an earlier attempt left.

    Without a path they are made, but not written. `peak`: peak memory of the phase so far, GiB.
    """

    def __init__(
        self, path: Path | None, phase: str, iteration: int, peak: Callable[[], float]
    ) -> None:
        self.path, self._peak = path, peak
        self._head = {"phase": phase, "iteration": iteration}
        if path is None:
            return
        rows = read_metrics(path)
        kept = [r for r in rows if (r["phase"], r["iteration"]) != (phase, iteration)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, **values: Any) -> dict[str, Any]:
        """Append one row, and return it. Names carry `__` for `/`."""
        row = {**self._head, **{name.replace("__", "/"): v for name, v in values.items()}}
        row["mem/peak_gib"] = self._peak()
        self.replay([row])
        return row

    def replay(self, rows: list[dict[str, Any]]) -> None:
        """Append rows as they are."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
