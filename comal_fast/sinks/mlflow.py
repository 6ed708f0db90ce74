"""mlflow: the server of MLFLOW_TRACKING_URI; without one that can be reached, ./mlflow.db.

Its own variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import os
import time
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from comal_fast.sinks.base import (
    PROJECT,
    Opened,
    Point,
    Result,
    Sink,
    State,
    TextTable,
    batches,
    flat,
    library,
    reachable,
)

_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_RUN = "comal_fast.run"  # the tag by which a run is found again
_LOCAL = "sqlite:///mlflow.db"


def make() -> Sink:
    """The sink. Raises InputError where mlflow is not installed."""
    library("mlflow")
    return Mlflow()


class Mlflow(Sink):
    """One run there, found again by its tag; its steps are `Point.axis`."""

    def open(self, run: Opened) -> str:
        import mlflow

        uri = mlflow.get_tracking_uri()
        lost = uri.startswith("http") and not reachable(uri)
        uri = _LOCAL if lost else uri
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_RUN}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=run.name, tags={_RUN: run.id})
            self._id = made.info.run_id
            self._params(flat(run.config))
            self._client.log_dict(self._id, run.config, "config.json")
            self._client.log_dict(self._id, run.versions, "versions.json")
        return f"{uri}, experiment {name}, run {run.name}{', as the server is away' * lost}"

    def tell(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, value, now, point.axis)
            for point in points
            for name, value in point.values.items()
        ]
        for some in batches(metrics, 1000):  # the most that a server takes at once
            self._client.log_batch(self._id, metrics=some)

    def table(self, table: TextTable) -> None:
        columns = {c: [row[i] for row in table.rows] for i, c in enumerate(table.columns)}
        self._client.log_table(self._id, columns, f"{table.name}-{table.iteration}.json")

    def result(self, result: Result) -> None:
        for name, value in result.summary.items():
            self._client.log_metric(self._id, name, value, step=0)
        for table in result.tables:
            self.table(table)
        for picture in result.pictures:
            self._client.log_artifact(self._id, str(picture), "report")
        for file in result.files:
            self._client.log_artifact(self._id, str(file))

    def close(self, state: State) -> None:
        with redirect_stdout(StringIO()):  # it says where to see the run
            self._client.set_terminated(self._id, _STATUS[state])

    def _params(self, options: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:6000]) for name, value in options.items()]
        for some in batches(params, 100):
            self._client.log_batch(self._id, params=some)
