"""What every phase does around its own work: compare keys, time it, log, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.store.artefacts import Artefact, Json, Table
from comal_fast.store.seal import Damaged

Made = tuple[Any, dict[str, Any]]  # what goes into the artefact, and the phase's row of metrics


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
    if artefact.holds(key):
        return
    metrics = context.metrics(phase, iteration)
    folder = context.directory.iteration(iteration)
    folder.log(artefact).discard()  # of an artefact that is made anew
    for other in folder.finished():
        if other.phase == phase and other.path != artefact.path and folder.log(other).exists():
            metrics.replay(folder.log(other).read()["rows"])
    start = time.monotonic()
    content, row = work()
    logged = metrics.log({"perf/seconds": time.monotonic() - start, **row})
    folder.log(artefact).write({"rows": [logged]}, key)
    artefact.write(content, key)


def check_drawn(context: Context, samples: Table, after: Artefact) -> None:
    """Raise InputError where samples are lost that an engine would not draw again as they were.

    `after`: what was made from them. Where it is not there, others are as good.
    """
    generation = context.config.generation
    if generation.repeatable or not after.exists():
        return
    why = f"{samples.path}: gone"
    if samples.exists():
        try:
            samples.verify()
        except Damaged as error:
            why = str(error)
        else:
            return
    raise InputError(
        f"{why}; {generation.engine} would draw others than those of {after.path.name}: delete "
        f"{after.path.parent} and the iterations after it, and they are made anew"
    )
