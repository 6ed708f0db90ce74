"""tensorboard: event files in logging/tensorboard; `tensorboard --logdir RUNS` compares runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from comal_fast.sinks.base import Opened, Point, Result, Sink, State, TextTable, library


def make() -> Sink:
    """The sink. Raises InputError where tensorboard is not installed."""
    library("tensorboard")
    return TensorBoard()


class TensorBoard(Sink):
    """Training by optimiser step, the other phases by iteration."""

    def open(self, run: Opened) -> str:
        from torch.utils.tensorboard import SummaryWriter

        if not run.resumed:
            for old in run.folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer: Any = SummaryWriter(str(run.folder))
        if not run.resumed:
            tree = {"config": run.config, "versions": run.versions}
            self._writer.add_text("config", f"```\n{json.dumps(tree, indent=2)}\n```", 0)
        self._writer.flush()
        return f"{run.folder}; tensorboard --logdir {run.folder.parent}"

    def tell(self, points: list[Point]) -> None:
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.axis)
        self._writer.flush()

    def table(self, table: TextTable) -> None:
        self._writer.add_text(table.name, table.markdown(), table.iteration)
        self._writer.flush()

    def result(self, result: Result) -> None:
        from PIL import Image

        for name, value in result.summary.items():
            self._writer.add_scalar(name, value, 0)
        for table in result.tables:
            self.table(table)
        for picture in result.pictures:
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"report/{picture.stem}", pixels, 0, dataformats="HWC")
        self._writer.flush()

    def close(self, state: State) -> None:
        self._writer.close()
