"""A sweep as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.conclusions import EXACT, exact_columns, rate


def table(sweep: Sweep) -> Table:
    """A table of the sweep, a row a cell; those that broke off come last."""
    names = [axis.short for axis in sweep.axes]
    found = Table(
        *names, "win rate", "at equal length", "KL to initial", "tokens", "diagnostics",
        *(EXACT if sweep.game_known else ()),
        title="final policy against the initial one, 95 % intervals",
    )  # fmt: skip
    for r in sweep.results:
        found.add_row(
            *(r.cell.settings[axis.key] for axis in sweep.axes), rate(r.win_rate),
            rate(r.controlled, r.not_comparable), f"{r.kl.mean:.2f}", f"{r.tokens:.1f}",
            ", ".join(r.findings), *exact_columns(r),
        )  # fmt: skip
    for cell in sweep.cells:
        if cell.name in sweep.failed:
            found.add_row(*(cell.settings[axis.key] for axis in sweep.axes), "broke off")
    return found
