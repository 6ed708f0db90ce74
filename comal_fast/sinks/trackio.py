"""trackio: in its own local database, which `trackio show` opens; TRACKIO_SPACE_ID sends it on.

Its own variables hold: TRACKIO_DIR, TRACKIO_PROJECT, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL.
"""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from comal_fast.sinks.base import (
    ITERATION,
    PROJECT,
    Opened,
    Point,
    Result,
    Sink,
    State,
    TextTable,
    library,
)


def make() -> Sink:
    """The sink. Raises InputError where trackio is not installed."""
    library("trackio")
    return Trackio()


class Trackio(Sink):
    """One run there, its name with the run's id: names are what trackio goes on by."""

    def open(self, run: Opened) -> str:
        import trackio

        project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{run.name}-{run.id}"
        with redirect_stdout(StringIO()):  # it greets
            self._run: Any = trackio.init(
                project=project,
                name=name,
                resume="allow",
                space_id=os.environ.get("TRACKIO_SPACE_ID"),
                config={**run.config, "versions": run.versions},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return f"run {name}; trackio show --project {project}"

    def tell(self, points: list[Point]) -> None:
        for point in points:
            self._run.log({**point.values, ITERATION: point.iteration}, step=point.step)

    def table(self, table: TextTable) -> None:
        import trackio

        shown = trackio.Table(columns=table.columns, data=table.rows)
        self._run.log({table.name: shown, ITERATION: table.iteration})

    def result(self, result: Result) -> None:
        import trackio

        if result.summary:
            self._run.log(result.summary)
        for table in result.tables:
            if table.rows:
                self.table(table)
        if result.pictures:
            self._run.log({f"report/{p.stem}": trackio.Image(str(p)) for p in result.pictures})

    def close(self, state: State) -> None:
        with redirect_stdout(StringIO()):
            self._run.finish()
