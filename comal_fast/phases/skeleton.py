"""What every phase does around its own work: compare keys, time it, log, write, note."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from comal_fast.context import Context
from comal_fast.store.artefacts import Artefact, Json, Table

Made = tuple[Any, dict[str, Any]]  # what goes into the artefact, and the phase's row of metrics


def is_made(context: Context, phase: str, iteration: int, artefact: Artefact, *keys: str) -> bool:
    """Whether it is there, made from the same things (any of `keys`); then the phase is done."""
    if artefact.key() not in keys:
        return False
    context.directory.note(phase, iteration)  # a kill may have come between the two
    return True


def make(
    context: Context,
    phase: str,
    iteration: int,
    artefact: Table | Json,
    key: str,
    work: Callable[[], Made],
) -> None:
    """Write the artefact, unless it is there. `work` runs only where it must.

    Its row is logged with `perf/seconds`, what the work took, where it does not say so itself.
    """
    if is_made(context, phase, iteration, artefact, key):
        return
    metrics = context.metrics(phase, iteration)
    start = time.monotonic()
    content, row = work()
    metrics.log({"perf/seconds": time.monotonic() - start, **row})
    artefact.write(content, key)
    context.directory.note(phase, iteration)
