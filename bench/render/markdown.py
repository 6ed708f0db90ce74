"""Tables in documents: a record as a section that says where its figures come from."""

from __future__ import annotations

from bench.record import Record
from bench.render.formats import Rows, device_text


def section(found: Record, *parts: str | Rows) -> str:
    """Paragraphs and tables, then who has no time and why, then where all of it comes from."""
    texts = [f"{part}\n" if isinstance(part, str) else _table(part) for part in parts]
    return "\n".join([*texts, *_untimed(found), _origin(found)])


def _table(rows: Rows) -> str:
    """A pipe table; numbers to the right."""
    columns, cells = rows
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


def _untimed(found: Record) -> list[str]:
    lines = [f"- {r['name']}: {r['why']}" for r in found["rows"] if r.get("why")]
    return ["Without a time:\n", "\n".join(lines) + "\n"] if lines else []


def _origin(found: Record) -> str:
    """The command, device, versions, commit and date, in one sentence."""
    versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items())
    return (
        f"`{found['command']}`, {found['date']}, commit {found['commit']}; "
        f"{device_text(found)}; {versions}.\n"
    )
