"""The tables of README and docs, from the records, so that no figure is typed by hand.

A document holds `<!-- bench: NAME FOLDER -->` … `<!-- /bench -->`; what stands between is replaced
by the newest record NAME of bench/results/FOLDER, as its bench writes it. `FOLDER` may be followed
by a number of tokens, for `head`. `<!-- study: FILE RUN -->` does the same with a study's record in
bench/results, RUN being the one that its others are compared with. `<!-- coverage: FILE -->` does
so with the record of `make coverage`, `<!-- rates: FILE -->` with that of `make diagnostics`.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from bench import record
from bench.benches import discover
from bench.render import coverage, rates, studies
from bench.render.formats import device_text
from comal_fast.errors import InputError

DOCUMENTS = (
    "README.md",
    "docs/benchmarks.md",
    "docs/plan.md",
    "docs/games.md",
    "docs/lm-game.md",
    "docs/sampled-step.md",
    "docs/intervals.md",
    "docs/diagnostics.md",
)
MARK = re.compile(r"(<!-- bench: (\S+) (\S+)(?: (\d+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)
STUDY = re.compile(r"(<!-- study: (\S+)(?: (\S+))? -->\n).*?(<!-- /study -->)", re.DOTALL)
COVERAGE = re.compile(r"(<!-- coverage: (\S+) -->\n).*?(<!-- /coverage -->)", re.DOTALL)
RATES = re.compile(r"(<!-- rates: (\S+) -->\n).*?(<!-- /rates -->)", re.DOTALL)


def register_adopt(verbs: Any) -> None:
    """Add `adopt`."""
    parser = verbs.add_parser(
        "adopt", help="put records from elsewhere where documents find them, and draw them"
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="RECORD.json")
    parser.set_defaults(run=adopt)


def adopt(args: argparse.Namespace) -> int:
    """Copy records to their standing places; InputError for a file that is none, before any."""
    known = {name: bench for bench in discover() for name in bench.records}
    found = [record.read(file) for file in args.files]
    for file, each in zip(args.files, found, strict=True):
        if each.get("bench") not in known:
            raise InputError(f"{file}: bench {each.get('bench')!r} is unknown")
    for each in found:
        record.write(each, record.AUTO)
        if draw := known[each["bench"]].draw:
            record.write_picture(each, draw(each), record.AUTO)
    return 0


def register(verbs: Any) -> None:
    """Add `table`."""
    parser = verbs.add_parser("table", help="render the documents' tables from the records")
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
    """The text with every table made anew. InputError for a mark that names no record."""
    benches = {name: bench for bench in discover() for name in bench.records}

    def replaced(match: re.Match[str]) -> str:
        opening, name, folder, tokens, closing = match.groups()
        if name not in benches:
            known = ", ".join(sorted(benches))
            raise InputError(f"{source}: <!-- bench: {name} … -->: unknown; known are {known}")
        found = record.newest(name, folder, results)
        if found is None:
            raise InputError(f"{source}: no record of {name} in bench/results/{folder}")
        body = benches[name].markdown(found, int(tokens or 0))
        picture = record.place(found, ".png", results)
        if picture.is_file():
            link = os.path.relpath(picture, Path(source).resolve().parent)
            body += f"\n![{name}, {device_text(found)}]({link})\n"
        return f"{opening}\n{body}\n{closing}"

    def studied(match: re.Match[str]) -> str:
        opening, file, baseline, closing = match.groups()
        body = studies.render((results or record.RESULTS) / file, baseline)
        return f"{opening}\n{body}\n{closing}"

    def covered(match: re.Match[str]) -> str:
        opening, file, closing = match.groups()
        return f"{opening}\n{coverage.render((results or record.RESULTS) / file)}\n{closing}"

    def rated(match: re.Match[str]) -> str:
        opening, file, closing = match.groups()
        return f"{opening}\n{rates.render((results or record.RESULTS) / file)}\n{closing}"

    text = COVERAGE.sub(covered, STUDY.sub(studied, MARK.sub(replaced, text)))
    return RATES.sub(rated, text)
