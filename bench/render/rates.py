"""The table of how often each diagnostic fires, from the record of `make diagnostics`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError


def render(path: Path) -> str:
    """Return a Markdown table of a record, a row per kind of runs and number of prompts.

    Raises:
        InputError: The file is no record of `make diagnostics`.
    """
    try:
        record = json.loads(path.read_text())
        return "\n".join([_source(record), "", *_table(record)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: no record of `make diagnostics`") from None


def _source(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    seeds = record["seeds"]
    return (
        f"`{record['command']}`, {record['date']}: {record['runs']} runs a row, of "
        f"{record['iterations']} iterations, seeds {seeds[0]} to {seeds[-1]}, {versions}."
    )


def _table(record: dict[str, Any]) -> list[str]:
    checks = record["checks"]
    head = ["runs", "prompts", *(f"`{name}`" for name in checks)]
    lines = [head, ["---"] * len(head)]
    for row in record["rows"]:
        cells = [_cell(row, name) for name in checks]
        lines.append([row["kind"], str(row["prompts"]), *cells])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cell(row: dict[str, Any], name: str) -> str:
    """Return the share of runs: bold where the check means the failure, in brackets if it may."""
    text = f"{row['fired'][name]:.1%}"
    if name in row["finds"]:
        return f"**{text}**"
    return f"({text})" if name in row["may_fire"] else text
