"""Tables on the terminal, from the records that are written."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from comal_fast.terminal import console

Record = dict[str, Any]


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print it; the first column to the left."""
    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def head(result: Record) -> None:
    """Fastest first, one table a number of tokens; then who got no time, and why."""
    from bench.table import head_rows

    for tokens in dict.fromkeys(row["tokens"] for row in result["rows"] if "tokens" in row):
        title = f"DPO from hidden states: {tokens} tokens, {shape_text(result)}"
        table(title, *head_rows(result, tokens))
    refused(result)


def refused(result: Record) -> None:
    """One line each of those without a time."""
    for row in result["rows"]:
        if row.get("why"):
            variant = f", {row['variant']}" if row.get("variant") else ""
            console.print(f"[yellow]–[/] {row['name']}{variant}: {row['why']}", soft_wrap=True)


def shape_text(result: Record) -> str:
    """Sizes, dtype and device."""
    shape, device = result["shape"], result["device"]
    sizes = f"{shape['hidden']} × {shape['vocab']}, {shape['dtype']}"
    threads = f", {device['threads']} threads" if "threads" in device else ""
    return f"{sizes}, {device['name']}{threads}"
