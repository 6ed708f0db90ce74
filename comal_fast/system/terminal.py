"""What a person sees: progress with rate and time left, one line per finished phase."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from comal_fast.system.doing import doing
from comal_fast.system.ranks import is_main

# phases' own processes have them too
_QUIET, _STDERR = "COMAL_FAST_QUIET", "COMAL_FAST_STDERR"


def width() -> int | None:
    """A terminal's own, or what COLUMNS says; for a pipe or a file nothing is folded."""
    return None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 1000


console = Console(
    highlight=False,
    quiet=not is_main(),
    width=width(),
    stderr=bool(os.environ.get(_STDERR)),
)

_QUIET_SECONDS = 1.0  # a `Bar` appears only for work that lasts longer


_told_to: Path | None = None
_phase_start = 0.0
_TOLD_SECONDS = 1.0


@contextmanager
def telling(path: Path, phase: str, iteration: int) -> Iterator[None]:
    """Within the block `path` says, about once a second, how far the bar is: for `watch`."""
    global _told_to, _phase_start
    if not is_main():
        yield
        return
    _told_to, _phase_start = path, time.monotonic()
    _phase.update(phase=phase, iteration=iteration)
    _tell({})
    try:
        yield
    finally:
        _told_to = None
        path.unlink(missing_ok=True)


_phase: dict[str, Any] = {}


def _tell(what: dict[str, Any]) -> None:
    """Write it whole: another process reads. A disk that is full stops no run here."""
    assert _told_to is not None
    temporary = _told_to.with_name(f".{_told_to.name}.partial")
    with suppress(OSError):
        temporary.write_text(json.dumps({**_phase, **what}), encoding="utf-8")
        temporary.replace(_told_to)


class _RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.3g} {task.fields['unit']}/s")


class Advance:
    """Counts work done; `rate` is its mean speed."""

    def __init__(self, progress: Progress, task: Any, what: dict[str, Any]) -> None:
        self._progress, self._task, self._what = progress, task, what
        self._start = self._told = time.monotonic()
        self.done = self._before = 0.0

    def begin(self, amount: float) -> None:
        """Count what was done before, by an earlier process: no rate comes of it."""
        self.done = self._before = amount
        self._progress.update(self._task, completed=amount)

    def __call__(self, amount: float = 1) -> None:
        self.done += amount
        self._progress.advance(self._task, amount)
        if _told_to is not None and time.monotonic() - self._told >= _TOLD_SECONDS:
            self._told = time.monotonic()
            told = {"done": self.done, "rate": self.rate}
            _tell({**self._what, **told, "phase_seconds": time.monotonic() - _phase_start})

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second since the beginning."""
        return (self.done - self._before) / max(self.seconds, 1e-9)


@contextmanager
def progress(description: str, total: float, unit: str) -> Iterator[Advance]:
    """Yield what moves a bar on a terminal; a log has only the line that closes it."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = bool(os.environ.get(_QUIET)) or not console.is_terminal
    bar = Progress(*columns, console=console, transient=True, disable=hidden)
    with bar:
        task = bar.add_task(description, total=total, unit=unit)
        advance = Advance(bar, task, {"what": description, "total": total, "unit": unit})
        with doing(lambda: f"{description}, {advance.done:,.0f} of {total:,.0f} {unit}"):
            yield advance
    took = f"{advance.seconds:.1f} s ({advance.rate:,.3g} {unit}/s)"
    done(description, f"{advance.done:,.0f} {unit} in {took}")


def note(text: str) -> None:
    """Say something that is neither a result nor a warning, unless less is to be said."""
    if not os.environ.get(_QUIET):
        console.print(text, soft_wrap=True, markup=False)


def done(what: str, result: str) -> None:
    """Say that a piece of work is done, unless less is to be said."""
    if not os.environ.get(_QUIET):
        console.print(f"[green]✓[/] {what:<34} {result}", soft_wrap=True)


class Bar:
    """A bar that appears on a terminal only when the work lasts.

    Context manager; call the object it yields once per unit of work, `total` of them.
    """

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(console=console, transient=True)
        self._label, self._total, self._done = label, total, 0
        self._enabled = console.is_terminal and not os.environ.get(_QUIET)
        self._task: TaskID | None = None
        self._next = 0.0

    def __enter__(self) -> Bar:
        self._next = time.monotonic() + _QUIET_SECONDS
        return self

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def __call__(self) -> None:
        self._done += 1
        if not self._enabled or (now := time.monotonic()) < self._next:
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=self._total)
        self._progress.update(self._task, completed=self._done)
        self._next = now + 0.1


def say_less(quiet: bool, verbose: bool) -> None:
    """Let this process, and those it starts, show no progress; or all that the libraries say."""
    os.environ.pop(_QUIET, None)
    if quiet:
        os.environ[_QUIET] = "1"
    if not verbose:
        quiet_libraries()


def quiet_libraries() -> None:
    """Silence the progress bars and notices of the libraries underneath."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """Within the block, if so wanted, what is said goes to stderr: stdout is for JSON alone."""
    before = console.stderr
    console.stderr = before or wanted
    if wanted:
        os.environ[_STDERR] = "1"
    try:
        yield
    finally:
        console.stderr = before
        if wanted:
            os.environ.pop(_STDERR, None)


def duration(value: float) -> str:
    """Seconds as text, in the unit that suits them."""
    if not math.isfinite(value):
        return "–"
    if value < 59.95:
        return f"{value:.1f} s" if value >= 0.95 else f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
