"""wandb: Weights & Biases; without a key, or where it can't be reached, offline in logging/wandb.

Its own variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_BASE_URL, WANDB_API_KEY.
"""

from __future__ import annotations

import os
from typing import Any

from comal_fast.sinks.base import (
    ITERATION,
    PROJECT,
    STEP,
    Opened,
    Point,
    Result,
    Sink,
    State,
    TextTable,
    library,
    reachable,
)
from comal_fast.store.directory import PHASES


def make() -> Sink:
    """The sink. Raises InputError where wandb is not installed."""
    library("wandb")
    return Wandb()


class Wandb(Sink):
    """One run there, gone on with by its id. Axes: `step` in training, else `iteration`."""

    def open(self, run: Opened) -> str:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        why = _offline(wandb)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.id,
            resume="allow",
            reinit="create_new",  # beside a run of the user's own, or of a cell before
            dir=str(run.folder),
            config={**run.config, "versions": run.versions},
            mode="offline" if why else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
        for axis in (STEP, ITERATION):
            self._run.define_metric(axis, hidden=True)
        for phase in PHASES:
            self._run.define_metric(
                f"{phase}/*", step_metric=STEP if phase == "train" else ITERATION
            )
        if why:
            return f"offline, {why}; wandb sync {run.folder}/wandb/offline-run-*-{run.id} sends it"
        return str(self._run.url or "")

    def tell(self, points: list[Point]) -> None:
        for point in points:
            self._run.log({**point.values, STEP: point.step, ITERATION: point.iteration})

    def table(self, table: TextTable) -> None:
        import wandb

        columns: list[str | int] = [ITERATION, *table.columns]
        rows = [[table.iteration, *row] for row in table.rows]
        self._run.log({table.name: wandb.Table(columns=columns, data=rows)})

    def result(self, result: Result) -> None:
        import wandb

        self._run.summary.update(result.summary)
        for table in result.tables:
            self.table(table)
        pictures = {f"report/{p.stem}": wandb.Image(str(p)) for p in result.pictures}
        if pictures:
            self._run.log(pictures)
        for file in result.files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self, state: State) -> None:
        self._run.finish(exit_code=int(state == "failed"))


def _offline(wandb: Any) -> str:
    """Why the run is kept here; "" where it goes there, or where WANDB_MODE says what to do."""
    if os.environ.get("WANDB_MODE"):
        return "" if os.environ["WANDB_MODE"] != "offline" else "as WANDB_MODE says"
    if not wandb.login(prompt=False, verify=False):
        return "no API key is there"
    address = wandb.setup().settings.base_url
    return "" if reachable(address) else f"{address} can't be reached"
