"""A new cell starts from what a finished one has in common with it, by hard links.

Artefacts are replaced, never changed in place, so a link is as good as a copy; and each carries the
key of what it was made from, so whatever does not fit after all is made anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from comal_fast.config import Config, to_dict
from comal_fast.store.artefacts import write_json, write_text
from comal_fast.store.metrics import read_metrics
from comal_fast.sweep.grid import Cell

BEFORE_TRAINING = ("generate", "judge", "pair", "logps")
FILES = {"generate": "samples", "judge": "judgments", "pair": "pairs", "logps": "logps"}
# groups of options that play no part before the first training step
LATE = ("algorithm.", "training.", "pairing.", "diagnostics.", "model.lora.")


def common_iterations(a: Config, b: Config) -> int | None:
    """How many iterations come out the same; None where not even the first samples do."""
    one, two = _leaves(to_dict(a)), _leaves(to_dict(b))
    # an optional group that is off is a leaf in one tree and leaves in the other
    differing = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    differing -= {"output_dir", "phases"}
    horizon = {"algorithm.iterations", "algorithm.ref_update_interval"}
    if differing <= horizon:
        least = min(a.algorithm.iterations, b.algorithm.iterations)
        if "algorithm.ref_update_interval" not in differing:
            return least
        # as long as the initial policy is the reference of both
        return min(least, a.algorithm.ref_update_interval, b.algorithm.ref_update_interval)
    return 0 if all(f"{key}.".startswith(LATE) for key in differing) else None


def start_from(cell: Cell, finished: Iterable[Cell]) -> Cell | None:
    """Fill a cell's new run directory from the finished cell that has most in common with it."""
    if (cell.directory / "iterations").exists():
        return None
    best: tuple[int, Cell] | None = None
    for other in finished:
        common = common_iterations(cell.config, other.config)
        if common is not None and (best is None or common > best[0]):
            best = (common, other)
    if best is None:
        return None
    common, source = best
    temporary = cell.directory.with_name(f".{cell.directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    for iteration in range(common + 1):
        folder = f"iterations/{iteration:04d}"
        shutil.copytree(source.directory / folder, temporary / folder, copy_function=_link)
    following = f"iterations/{common + 1:04d}"
    (temporary / following).mkdir(parents=True)
    for name in FILES.values():
        file = source.directory / following / f"{name}.parquet"
        if file.is_file():
            _link(file, temporary / following / file.name)

    def shared(phase: str, iteration: int) -> bool:
        return iteration <= common or (iteration == common + 1 and phase in BEFORE_TRAINING)

    rows = read_metrics(source.directory / "metrics.jsonl")
    kept = [json.dumps(row) + "\n" for row in rows if shared(row["phase"], row["iteration"])]
    write_text(temporary / "metrics.jsonl", "".join(kept))
    done = json.loads((source.directory / "state.json").read_text())["done"]
    pairs = [(entry, *entry.split("/")) for entry in done]
    state = [entry for entry, iteration, phase in pairs if shared(phase, int(iteration))]
    write_json(temporary / "state.json", {"done": state})
    if cell.directory.exists():  # a start that was broken off before any phase
        shutil.rmtree(cell.directory)
    temporary.rename(cell.directory)
    return source


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links there
        shutil.copy2(source, target)


def _leaves(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
