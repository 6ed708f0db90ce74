"""The table of how often intervals hold the truth, from the record of `make coverage`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError

Entry = dict[str, Any]


def render(path: Path) -> str:
    """Return a Markdown table of a record, a row per interval and kind of data.

    Raises:
        InputError: The file is no record of `make coverage`.
    """
    try:
        record = json.loads(path.read_text())
        return "\n".join(
            [_source(record), "", *_table(record["rows"]), "", *_notes(record["rows"])]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: no record of `make coverage`") from None


def _source(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    return (
        f"`{record['command']}`, {record['date']}: {record['replications']} data sets a row, "
        f"{versions}."
    )


def _table(entries: Sequence[Entry]) -> list[str]:
    sizes = sorted({entry["n"] for entry in entries})
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["interval"], entry["data"]), []).append(entry)
    lines = [
        "| printed number | data | truths | " + " | ".join(f"{n} prompts" for n in sizes) + " |",
        "| --- " * (3 + len(sizes)) + "|",
    ]
    for (interval, data), group in groups.items():
        truths = _range(sorted({entry["truth"] for entry in group}))
        cells = [_cell([entry for entry in group if entry["n"] == n]) for n in sizes]
        lines.append(f"| {interval} | {data} | {truths} | {' | '.join(cells)} |")
    return lines


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Return a line for every kind of row whose bounds are its own."""
    found: dict[tuple[str, float, float, str], None] = {}
    for entry in entries:
        if entry["why"]:
            found[entry["interval"], *entry["bounds"], entry["why"]] = None
    return [
        f"- {interval}, {least:.1%} to {most:.1%} asked for: {why}."
        for interval, least, most, why in found
    ]


def _cell(entries: Sequence[Entry]) -> str:
    """Return coverage, from the least to the most over the truths, and half the mean width."""
    printed = [entry for entry in entries if entry["coverage"] is not None]
    if not printed:
        return "none printed" if entries else "–"
    shares = [100 * entry["coverage"] for entry in printed]
    half = sum(entry["width"] for entry in printed) / len(printed) / 2
    answered = sum(e["answered"] for e in entries) / sum(e["replications"] for e in entries)
    text = f"{min(shares):.1f}"
    if len(shares) > 1:
        text += f" – {max(shares):.1f}"
    text += f" % (± {half:.2g})"
    return text if answered > 0.995 else f"{text}, printed in {answered:.0%}"


def _range(truths: Sequence[float]) -> str:
    texts = [f"{truth:.2g}" for truth in truths]
    return texts[0] if len(texts) == 1 else f"{texts[0]} – {texts[-1]}"
