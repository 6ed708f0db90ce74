"""A progress bar that appears on a terminal only when the work lasts."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import Progress, TaskID

_QUIET_SECONDS = 1.0  # a run shorter than this shows no progress bar


class Bar:
    """Context manager; call the object it yields once per unit of work, `total` of them."""

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
