"""Every kernel in every configuration that it can be launched with, compiled without a GPU."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import asdict

import torch

from bench import record
from bench.bench import Bench
from bench.record import Record
from bench.render import terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

ARCHITECTURES = (80, 90, 100)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `compile`."""
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90)
    parser.add_argument("--match", default="", help="only those in which this expression is found")


def run(args: argparse.Namespace) -> Record:
    """What the compiler made of each kernel."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 is set: interpreted kernels have no machine code")
    from bench.measure.compiled import cases, measure  # triton loads here, bound to no interpreter

    wanted = [c for c in cases(args.arch) if re.search(args.match, f"{c.kernel} {c.config}")]
    if not wanted:
        raise InputError(f"--match {args.match}: no kernel configuration matches")
    rows = []
    with progress(f"compiling for sm_{args.arch}", len(wanted), "kernels") as advance:
        for case in wanted:
            rows.append(asdict(measure(case, args.arch)))
            advance()
    shape = {"arch": args.arch, "match": args.match}
    return record.new(f"compile-sm{args.arch}", torch.device("cpu"), shape=shape, rows=rows)


def show(found: Record) -> None:
    """Print a row a kernel."""
    terminal.table(f"kernels compiled for sm_{found['shape']['arch']}", kernel_rows(found))


def markdown(found: Record, tokens: int) -> str:
    """The kernels as a section of a document."""
    return section(found, kernel_rows(found))


def kernel_rows(found: Record) -> Rows:
    """A row a kernel and configuration: what it takes of a GPU, and which instructions it has."""
    columns = ["kernel", "config", "registers", "spill_bytes", "shared_bytes"]
    rows = [
        [
            *(str(r[c]) for c in columns),
            ", ".join(f"{n} {name}" for name, n in r["matrix_instructions"].items()),
        ]
        for r in found["rows"]
    ]
    return [*columns, "matrix_instructions"], rows


BENCH = Bench(
    verb="compile",
    help="registers, spills, matrix instructions; no GPU",
    add_options=add_options,
    run=run,
    records=tuple(f"compile-sm{arch}" for arch in ARCHITECTURES),
    show=show,
    markdown=markdown,
    failed=lambda found: any(r["spill_bytes"] for r in found["rows"]),
)
