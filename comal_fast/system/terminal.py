"""What a person sees: progress with rate and time left, one line per finished phase."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

console = Console(highlight=False, quiet=not is_main())

_QUIET_SECONDS = 1.0  # a `Bar` appears only for work that lasts longer


class _RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.3g} {task.fields['unit']}/s")


class Advance:
    """Counts work done; `rate` is its mean speed."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task
        self._start = time.monotonic()
        self.done = 0.0

    def __call__(self, amount: float = 1) -> None:
        self.done += amount
        self._progress.advance(self._task, amount)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second since the beginning."""
        return self.done / max(self.seconds, 1e-9)


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
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        advance = Advance(bar, bar.add_task(description, total=total, unit=unit))
        with doing(lambda: f"{description}, {advance.done:,.0f} of {total:,.0f} {unit}"):
            yield advance
    console.print(
        f"[green]✓[/] {description:<34} {advance.done:,.0f} {unit} in "
        f"{advance.seconds:.1f} s ({advance.rate:,.3g} {unit}/s)",
        soft_wrap=True,
    )


class Bar:
    """A bar that appears on a terminal only when the work lasts.

    Context manager; call the object it yields once per unit of work, `total` of them.
    """

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(console=console, transient=True)
        self._label, self._total, self._done = label, total, 0
        self._enabled = console.is_terminal
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


def quiet_libraries() -> None:
    """Silence the progress bars and notices of the libraries underneath."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


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
