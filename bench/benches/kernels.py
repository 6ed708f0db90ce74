"""Every kernel in every configuration that it can be launched with, compiled without a GPU."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from comal_fast.errors import InputError


def register(benches: Any) -> None:
    """Add `compile`."""
    parser = benches.add_parser("compile", help="registers, spills, matrix instructions; no GPU")
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), default=90)
    parser.add_argument("--match", default="", help="only those in which this expression is found")
    parser.add_argument("--json", type=Path, help="where to write the records")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile, print; write the records where asked. Status 1 if anything spills."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 is set: interpreted kernels have no machine code")
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: no such folder")
    from bench.measure.compiled import cases, measure  # triton loads here, bound to no interpreter

    wanted = [c for c in cases(args.arch) if re.search(args.match, f"{c.kernel} {c.config}")]
    if not wanted:
        raise InputError(f"--match {args.match}: no kernel configuration matches")
    records = [
        asdict(measure(c, args.arch)) for c in track(wanted, f"compiling for sm_{args.arch}")
    ]
    table = Table(title=f"kernels compiled for sm_{args.arch}")
    columns = ("kernel", "config", "registers", "spill_bytes", "shared_bytes")
    for column in (*columns, "matrix_instructions"):
        table.add_column(column)
    for record in records:
        found = ", ".join(f"{n} {name}" for name, n in record["matrix_instructions"].items())
        table.add_row(*(str(record[c]) for c in columns), found)
    Console(highlight=False).print(table)
    if args.json:
        args.json.write_text(json.dumps(records, indent=2) + "\n")
    return int(any(record["spill_bytes"] for record in records))
