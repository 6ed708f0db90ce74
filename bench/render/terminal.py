"""Tables on the terminal, from the records that are written."""

from __future__ import annotations

from rich.table import Table

from bench.record import Record
from bench.render.formats import Rows
from comal_fast.system.terminal import console


def table(title: str, rows: Rows) -> None:
    """Print a table; the first column to the left."""
    columns, cells = rows
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in cells:
        shown.add_row(*row)
    console.print(shown)


def line(text: str) -> None:
    """Print a sentence, however long, in one line."""
    console.print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print a line that one should not miss."""
    line(f"[yellow]–[/] {text}")


def refused(found: Record) -> None:
    """Print a line for each row without a time: why."""
    for row in found["rows"]:
        if row.get("why"):
            variant = f", {row['variant']}" if row.get("variant") else ""
            note(f"{row['name']}{variant}: {row['why']}")
