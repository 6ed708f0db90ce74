"""The cells of a sweep, one after the other; a finished one is not run again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from comal_fast.config import load_saved
from comal_fast.config.plugins import sources
from comal_fast.errors import InputError
from comal_fast.store.files import read_json, write_json
from comal_fast.sweep.grid import Cell
from comal_fast.sweep.reuse import start_from
from comal_fast.system.terminal import console, duration, note


def is_finished(cell: Cell) -> bool:
    """Whether its run wrote a summary, of this very configuration and its plugins."""
    directory = cell.directory
    if not directory.summary.exists() or not directory.config.is_file():
        return False
    try:
        written = directory.read_summary() or {}
        same = load_saved(directory.config) == cell.config
    except InputError:  # of another version, or damaged: made anew
        return False
    return same and written.get("plugins", {}) == sources(cell.config.plugins)


def run_cells(folder: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Run what is not finished; cell name → why it failed, for those that did.

    A cell whose training breaks off does not keep the others from running.
    """
    from comal_fast.config.validate import needs_samples
    from comal_fast.loop import run_all  # torch loads only once all cells are good
    from comal_fast.oracles import make_oracle

    for cell in cells:
        if not needs_samples(cell.config):
            raise InputError(
                f"cell {cell.name}: a sweep compares win rates, and data.pairs without an oracle "
                "has none; name an oracle"
            )
        try:
            make_oracle(cell.config.oracle)  # says what it lacks, before any of them is run
        except InputError as error:
            raise InputError(f"cell {cell.name}: {error}") from None
    open_cells = [cell for cell in cells if not is_finished(cell)]
    failed: dict[str, str] = {}
    seconds: list[float] = []
    for number, cell in enumerate(open_cells):
        left = ""
        if seconds:
            mean = sum(seconds) / len(seconds)
            left = f", about {duration(mean * (len(open_cells) - number))} left"
        place = len(cells) - len(open_cells) + number + 1
        note(f"\ncell {place} of {len(cells)}: {cell.name}{left}")
        start = time.monotonic()
        source = start_from(cell, [c for c in cells if is_finished(c)])
        if source is not None:
            note(f"  starts from what it shares with {source.name}")
        try:
            run_all(cell.config)
        except InputError as error:
            failed[cell.name] = str(error)
            console.print(f"[red]✗[/] {cell.name}: {error}")
        seconds.append(time.monotonic() - start)
        _note_seconds(folder, cell, seconds[-1])
    return failed


def _note_seconds(folder: Path, cell: Cell, spent: float) -> None:
    """Add to the time that this cell took, over all its starts; what it shares cost it nothing."""
    before = spent_seconds(folder)
    total = before.get(cell.name, 0.0) + spent
    write_json(folder / "seconds.json", {**before, cell.name: total})


def spent_seconds(folder: Path) -> dict[str, float]:
    """Cell name → seconds that it took."""
    path = folder / "seconds.json"
    return dict(read_json(path)) if path.is_file() else {}
