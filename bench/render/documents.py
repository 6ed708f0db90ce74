"""The tables of README and docs, from the records, so that no figure is typed by hand.

A document holds `<!-- bench: NAME FOLDER -->` … `<!-- /bench -->`; what stands between is replaced
by the newest record NAME (head, head-forward, step, memory, peak, scaling, profile-head,
profile-step, model) of bench/results/FOLDER. `FOLDER` may be followed by a number of tokens, for
`head`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import record
from bench.record import Record
from bench.render import rows
from bench.render.rows import Rows
from bench.render.terminal import device_text, shape_text
from comal_fast.errors import InputError

DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/plan.md")
MARK = re.compile(r"(<!-- bench: (\S+) (\S+)(?: (\d+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)


def register(benches: Any) -> None:
    """Add `table`."""
    parser = benches.add_parser("table", help="render the documents' tables from the records")
    parser.add_argument("files", nargs="*", type=Path, help=f"default: {', '.join(DOCUMENTS)}")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if stale")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replace what stands between the marks. Status 1 under --check if anything would change."""
    files = args.files or [record.ROOT / name for name in DOCUMENTS]
    stale = 0
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        text = path.read_text()
        fresh = render(text, str(path))
        if fresh == text:
            continue
        stale += 1
        if args.check:
            print(f"{path}: not what the records say; run `python -m bench table`")
        else:
            path.write_text(fresh)
            print(f"{path}: tables rendered")
    return int(bool(stale) and args.check)


def render(text: str, source: str, results: Path | None = None) -> str:
    """The text with every table made anew. ValueError for a mark that names no record."""

    def replaced(match: re.Match[str]) -> str:
        opening, name, folder, tokens, closing = match.groups()
        if name not in RENDERERS:
            known = ", ".join(RENDERERS)
            raise InputError(f"{source}: <!-- bench: {name} … -->: unknown; known are {known}")
        found = record.newest(name, folder, results)
        if found is None:
            raise InputError(f"{source}: no record of {name} in bench/results/{folder}")
        body = RENDERERS[name](found, int(tokens or 0))
        picture = record.place(found, ".png", results)
        if picture.is_file():
            link = os.path.relpath(picture, Path(source).resolve().parent)
            body += f"\n![{name}, {device_text(found)}]({link})\n"
        return f"{opening}\n{body}\n{closing}"

    return MARK.sub(replaced, text)


def markdown(table: Rows) -> str:
    """A pipe table; numbers to the right."""
    columns, cells = table
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


def origin(found: Record) -> str:
    """The command, device, versions, commit and date, in one sentence."""
    versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items())
    return (
        f"`{found['command']}`, {found['date']}, commit {found['commit']}; "
        f"{device_text(found)}; {versions}.\n"
    )


def _head(found: Record, tokens: int) -> str:
    sizes = list(dict.fromkeys(r["tokens"] for r in found["rows"] if "tokens" in r))
    if tokens and tokens not in sizes:
        raise InputError(f"the newest head record has {sizes} tokens, not {tokens}")
    parts = []
    for n in [tokens] if tokens else sizes:
        what = "forward" if found["bench"] == "head-forward" else "forward and backward"
        parts.append(f"{n} tokens × {shape_text(found)}, {found['data']} data, {what}:\n")
        parts.append(markdown(rows.head_rows(found, n)))
    return "\n".join([*parts, *_untimed(found), origin(found)])


def _untimed(found: Record) -> list[str]:
    lines = [f"- {r['name']}: {r['why']}" for r in found["rows"] if r.get("why")]
    return ["Without a time:\n", "\n".join(lines) + "\n"] if lines else []


def _step(found: Record, tokens: int) -> str:
    shape = found["shape"]
    what = (
        f"{found['model']}, {shape['pairs']} pairs, {shape['distinct_tokens']} distinct tokens "
        f"({shape['padded_tokens']} in a padded batch), {shape['dtype']}:\n"
    )
    return "\n".join([what, markdown(rows.step_rows(found)), *_untimed(found), origin(found)])


def _plain(make: Callable[[Record], Rows]) -> Callable[[Record, int], str]:
    return lambda found, tokens: "\n".join([markdown(make(found)), *_untimed(found), origin(found)])


def _model(found: Record, tokens: int) -> str:
    shape, measured = found["shape"], found["measured"]
    text = (
        f"A step of {found['model']} on {shape['devices']} × {found['machine']['name']}, "
        f"{sum(shape['lengths'])} tokens{', extrapolated' if found['extrapolated'] else ''}; "
        f"rates: {found['machine']['source']}.\n"
    )
    lines = [text, markdown(rows.model_rows(found)), markdown(rows.model_memory_rows(found))]
    if measured:
        wrong = found["seconds"] / measured["seconds"] - 1, found["peak"] / measured["peak"] - 1
        lines.append(
            f"Measured: {measured['seconds']:.2f} s and {rows.gib(measured['peak'])} GiB; "
            f"the prediction is off by {wrong[0]:+.0%} and {wrong[1]:+.0%}.\n"
        )
    return "\n".join([*lines, origin(found)])


RENDERERS: dict[str, Callable[[Record, int], str]] = {
    "head": _head,
    "head-forward": _head,
    "step": _step,
    "memory": _plain(rows.memory_rows),
    "peak": _plain(rows.peak_rows),
    "scaling": _plain(rows.scaling_rows),
    "profile-head": _plain(rows.breakdown_rows),
    "profile-step": _plain(rows.breakdown_rows),
    "model": _model,
}
