"""Tells the sinks what a run writes to metrics.jsonl, whichever of its processes writes it."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from comal_fast.config import Config, to_dict
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.report.load import load_run
from comal_fast.report.samples import load_comparisons
from comal_fast.sinks.base import (
    Opened,
    Point,
    Result,
    Sink,
    State,
    TextTable,
    batches,
    numbers,
)
from comal_fast.sinks.ledger import Ledger, identity
from comal_fast.store.directory import BEFORE_TRAINING, RunDirectory
from comal_fast.store.metrics import MetricsReader, Row
from comal_fast.store.seal import Damaged
from comal_fast.system.machine import versions
from comal_fast.system.signals import Terminated
from comal_fast.system.terminal import console, note

SECONDS = 1.0  # between two looks at metrics.jsonl
PATIENCE = 60.0  # seconds that the end of a run waits for a sink

Function = Callable[[Mapping[str, Any]], None]
_functions: list[Function] = []


def register(sink: Function) -> Function:
    """Tell `sink` every row of metrics, once: `phase`, `iteration`, and the measures by name.

    For plugins, usable as a decorator; returns it. A run that goes on tells it the new rows only.
    """
    _functions.append(sink)
    return sink


class _Registered(Sink):
    """A plugin's function."""

    rows_at_once = 1

    def __init__(self, function: Function) -> None:
        self._function = function

    def open(self, run: Opened) -> str:
        return ""

    def tell(self, points: list[Point]) -> None:
        for point in points:
            self._function(point.row)


@contextmanager
def following(context: Context) -> Iterator[None]:
    """Within the block every row that the run writes is told to the sinks of its configuration.

    A sink that fails later is named, once, and left alone; the run goes on, and the same command
    tells that sink the rest. Raises InputError for a sink whose library is not installed.
    """
    followed: list[_Followed] = []
    state: State = "failed"
    try:
        for name, sink in make_sinks(context.config).items():
            followed.append(_Followed(name, sink, context))
        yield
        state = "done"
    except (KeyboardInterrupt, Terminated):
        state = "stopped"
        raise
    finally:
        for each in followed:
            each.over.set()
        for each in followed:
            each.end(state)


def make_sinks(config: Config) -> dict[str, Sink]:
    """Name → sink. Raises InputError where a library is missing."""
    named = {name: importlib.import_module(f"comal_fast.sinks.{name}") for name in config.logging}
    sinks: dict[str, Sink] = {name: module.make() for name, module in named.items()}
    for function in _functions:
        name = _name(function)
        while name in sinks:
            name += "_"
        sinks[name] = _Registered(function)
    return sinks


def _name(function: Function) -> str:
    """What the ledger of a plugin's function is called."""
    known = f"{function.__module__}_{getattr(function, '__qualname__', type(function).__name__)}"
    return re.sub(r"\W+", "_", f"plugin_{known}")


class _Followed:
    """One sink, what it has been told, and the thread that tells it."""

    def __init__(self, name: str, sink: Sink, context: Context) -> None:
        self.name, self.sink = name, sink
        self.over = Event()
        self._directory = context.directory
        folder = context.directory.logging
        self._reader = MetricsReader(context.directory.metrics)
        path, rows = folder / f"{name}.json", self._reader.rows()
        self._ledger = Ledger(path, identity(context.config), rows, self._tables(), sink.anew)
        self._reader.forget()
        self._alive = True
        self._before = _written(self._directory.summary.path)
        opened = Opened(
            folder / name,
            context.directory.path.resolve().name,
            self._ledger.id,
            self._ledger.resumed,
            to_dict(context.config),
            versions(),
        )
        with self._guarded():
            where = sink.open(opened)
            self._ledger.write()
            if where:
                note(f"  logging: {name}: {where}")
        self._thread = Thread(target=self._follow, daemon=True, name=f"sink {name}")
        self._thread.start()

    def _follow(self) -> None:
        while self._alive and not self.over.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Tell what is new."""
        if not self._alive:
            return
        with self._guarded():
            if not self._reader.changed():
                return
            rows = self._reader.rows()
            new = self._ledger.new(rows)
            for some in batches(new, self.sink.rows_at_once):
                self.sink.tell(points(some, rows))
                self._ledger.told(some, rows)
            for name, key in self._tables().items():
                iterate = int(name.split()[1])
                if self._ledger.is_new(name, key) and iterate:
                    if table := responses(self._directory, iterate):
                        self.sink.table(table)
                    self._ledger.told_table(name, key)

    def _tables(self) -> dict[str, str]:
        """`responses T` → the key of the held-out samples of each iterate that has some."""
        found = {}
        for t in self._directory.sampled():
            with suppress(Damaged, InputError):
                found[f"responses {t}"] = str(self._directory.iteration(t).eval_samples.key())
        return found

    def end(self, state: State) -> None:
        """Tell what is left, the result of a run that ended here, and let go."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            said = f"  ! logging: {self.name}: no answer for {PATIENCE:.0f} s; the same command"
            console.print(f"{said} tells it the rest later", soft_wrap=True, markup=False)
            return
        summary = self._directory.summary.path
        ended = state == "done" and _written(summary) not in (None, self._before)
        if ended:
            self._ledger.done()
        self._reader.forget()
        self.look()
        if self._alive and ended:
            with self._guarded():
                digest = hashlib.sha256(summary.read_bytes()).hexdigest()[:32]
                if digest != self._ledger.end:
                    self.sink.result(result(self._directory))
                    self._ledger.end = digest
        if self._alive:
            with self._guarded():
                self.sink.close(state)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What goes wrong in a sink ends the sink, not the run."""
        try:
            yield
        except Exception as error:
            self._alive = False
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            console.print(
                f"  ! logging: {self.name}: {why}; the run goes on without it, and the same "
                "command tells it the rest later",
                soft_wrap=True,
                markup=False,
            )
            with suppress(Exception):  # it may be what failed
                self.sink.close("failed")


def _written(path: Path) -> int | None:
    """When a file was written; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def points(new: list[Row], rows: list[Row]) -> list[Point]:
    """The new ones of all rows, with the optimiser steps since the run began."""
    steps: dict[int, int] = {}
    for row in rows:
        if row["phase"] == "train":
            steps[row["iteration"]] = max(row["step"], steps.get(row["iteration"], 0))

    def step(row: Row) -> int:
        t, phase = row["iteration"], row["phase"]
        before = sum(n for iteration, n in steps.items() if iteration < t)
        if phase == "train":
            return before + int(row["step"])
        return before + (0 if phase in BEFORE_TRAINING else steps.get(t, 0))

    return [Point(r["phase"], r["iteration"], step(r), numbers(r["phase"], r), r) for r in new]


def responses(directory: RunDirectory, iterate: int) -> TextTable | None:
    """Held-out responses of a sampled iterate beside the initial policy's."""
    _, found = load_comparisons(directory, [], iterate)
    rows: list[list[Any]] = [[x.prompt, x.before.text, x.after.text] for x in found]
    columns = ["prompt", "π_0", f"π_{iterate}"]
    return TextTable("responses", iterate, columns, rows) if rows else None


def result(directory: RunDirectory) -> Result:
    """Summary, diagnostics, pictures, report and configuration."""
    run = load_run(directory.path)
    fired: list[list[Any]] = [[d.iteration, d.name, d.action, d.text] for d in run.diagnoses]
    tables = [TextTable("diagnostics", max(run.diagnosed, default=0), _FIRED, fired)]
    pictures = sorted(directory.pictures.glob("*.png"))
    files = [directory.config, directory.environment, directory.summary.path, directory.report]
    return Result(
        _summary(run.summary),
        tables if run.diagnosed else [],
        pictures if run.option("evaluation.report") else [],
        [f for f in files if f.exists() and (f != directory.report or pictures)],
    )


_FIRED = ["iteration", "name", "action", "text"]


def _summary(content: Mapping[str, Any]) -> dict[str, float]:
    """`result/…` → the numbers of summary.json, intervals as mean, low and high."""
    found: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)
        elif name.endswith("/ci95") and isinstance(value, list):
            for end, inner in zip(("low", "high"), value, strict=True):
                walk(f"{name.removesuffix('ci95')}{end}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)

    for key, value in content.items():
        walk(f"result/{key}", value)
    return found
