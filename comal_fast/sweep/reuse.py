"""A new cell starts from what a finished one has in common with it, by hard links.

Artefacts are replaced, never changed in place, so a link is as good as a copy; and each carries the
key of what it was made from, so whatever does not fit after all is made anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from comal_fast.config import Config, to_dict
from comal_fast.config.load import leaves
from comal_fast.config.options import how_names
from comal_fast.store.directory import BEFORE_TRAINING, RunDirectory
from comal_fast.store.metrics import write_metrics
from comal_fast.sweep.grid import Cell

# groups of options that play no part before the first training step
LATE = ("algorithm.", "training.", "pairing.", "diagnostics.", "model.lora.")


def common_iterations(a: Config, b: Config) -> int | None:
    """How many iterations come out the same; None where not even the first samples do."""
    one, two = dict(leaves(to_dict(a))), dict(leaves(to_dict(b)))
    # an optional group that is off is a leaf in one tree and leaves in the other
    differing = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    differing -= set(how_names(type(a)))
    horizon = {"algorithm.iterations", "algorithm.ref_update_interval"}
    if differing <= horizon:
        least = min(a.algorithm.iterations, b.algorithm.iterations)
        if "algorithm.ref_update_interval" not in differing:
            return least
        # as long as the initial policy is the reference of both
        return min(least, a.algorithm.ref_update_interval, b.algorithm.ref_update_interval)
    return 0 if all(f"{key}.".startswith(LATE) for key in differing) else None


def start_from(cell: Cell, finished: Iterable[Cell]) -> Cell | None:
    """Fill a cell's new run directory from the finished cell that has most in common with it.

    Returns that cell; None where there is none, or where the cell has begun.
    """
    if cell.directory.iterations_folder.exists():
        return None
    best: tuple[int, Cell] | None = None
    for other in finished:
        common = common_iterations(cell.config, other.config)
        if common is not None and (best is None or common > best[0]):
            best = (common, other)
    if best is None:
        return None
    common, source = best
    target = cell.directory.path
    temporary = RunDirectory(target.with_name(f".{target.name}.partial"))
    shutil.rmtree(temporary.path, ignore_errors=True)
    for iteration in range(common + 1):
        old, new = (d.iteration(iteration).path for d in (source.directory, temporary))
        shutil.copytree(old, new, copy_function=_link)
    theirs, ours = (d.iteration(common + 1) for d in (source.directory, temporary))
    ours.path.mkdir(parents=True)
    for have, want in zip(theirs.before_training(), ours.before_training(), strict=True):
        if have.exists():
            _link(have.path, want.path)
        if (log := theirs.log(have)).exists():
            copy = ours.log(want).path
            copy.parent.mkdir(exist_ok=True)
            _link(log.path, copy)

    def shared(phase: str, iteration: int) -> bool:
        return iteration <= common or (iteration == common + 1 and phase in BEFORE_TRAINING)

    rows = source.directory.rows()
    write_metrics(temporary.metrics, [r for r in rows if shared(r["phase"], r["iteration"])])
    if target.exists():  # a start that was broken off before any phase
        shutil.rmtree(target)
    temporary.path.rename(target)
    return source


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links there
        shutil.copy2(source, target)
