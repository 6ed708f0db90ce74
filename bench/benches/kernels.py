"""Every kernel in every configuration that it can be launched with, compiled without a GPU."""

from __future__ import annotations

import argparse
import math
import os
import re
from dataclasses import asdict

import torch

from bench import options, record
from bench.bench import Bench
from bench.record import Record
from bench.render import terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
WAVES = (80, 90, 100)  # of which `bench.measure.waves` has a GPU's figures


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `compile`."""
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90)
    parser.add_argument("--match", default="", help="only those in which this expression is found")
    parser.add_argument("--waves", action="store_true", help="how they would fill a GPU, predicted")
    parser.add_argument("--tokens", type=options.positive, default=8192, help="rows, with --waves")
    parser.add_argument("--hidden", type=options.positive, default=4096)
    parser.add_argument("--vocab", type=options.positive, default=128256)


def run(args: argparse.Namespace) -> Record:
    """What the compiler made of each kernel."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 is set: interpreted kernels have no machine code")
    from bench.measure.compiled import cases, measure  # triton loads here, bound to no interpreter
    from comal_kernels.engines.triton import tuning

    if args.waves:
        return predict(args)
    wanted = [c for c in cases(args.arch) if re.search(args.match, f"{c.kernel} {c.config}")]
    if not wanted:
        raise InputError(f"--match {args.match}: no kernel configuration matches")
    rows = []
    with progress(f"compiling for sm_{args.arch}", len(wanted), "kernels") as advance:
        for case in wanted:
            rows.append(asdict(measure(case, args.arch)))
            advance()
    limit = tuning.SHARED_MEMORY[args.arch]
    shape = {"arch": args.arch, "match": args.match, "shared_limit": limit}
    return record.new(f"compile-sm{args.arch}", torch.device("cpu"), shape=shape, rows=rows)


def predict(args: argparse.Namespace) -> Record:
    """How the kernels of a plain bfloat16 head would fill a GPU, and what a call would take."""
    from bench.measure import waves
    from bench.measure.compiled import cases, inspect
    from bench.measure.sass import frequencies
    from comal_kernels.engines.triton import tuning

    if args.match:
        raise InputError(
            "--match: --waves takes the kernels of a plain bfloat16 head; leave it out"
        )
    if args.arch not in WAVES:
        raise InputError(f"--arch {args.arch}: --waves knows {', '.join(map(str, WAVES))}")
    aligned = args.hidden % 16 == 0
    arch, dtype = args.arch, torch.bfloat16
    tile, even = tuning.choose(tuning.SOFTEN, arch, dtype, args.hidden, aligned, plain=True)
    fit = next(f for (d, f), t in tuning.SOFTEN[arch].items() if d is dtype and t == tile)
    words = f"words={int(args.vocab % tile.block_v == 0)}"
    calls = {"training": "store=1", "forward": "store=0"}
    gpu, rows, soft = waves.PROCESSORS[arch], [], {}
    for call, store in calls.items():
        wanted = f"bf16 .* bias=0 softcap=0 {store} some=0 {words} {fit}$"
        case = next(
            c for c in cases(arch) if c.kernel == "soften_kernel" and re.match(wanted, c.config)
        )
        figures, code = inspect(case, arch)
        soft[call] = frequencies(code)
        for tokens in sorted({2048, 4096, 8192, 16384, args.tokens}):
            shape = waves.Shape(tokens, args.hidden, args.vocab)
            found = asdict(waves.waves(shape, tile, soft[call], gpu))
            rows.append({"call": call, "tokens": tokens} | asdict(figures) | found)
    shape = waves.Shape(args.tokens, args.hidden, args.vocab)
    return record.new(
        f"waves-sm{arch}",
        torch.device("cpu"),
        shape=asdict(shape) | {"arch": arch},
        tile=asdict(tile),
        gpu=asdict(gpu),
        assumed=waves.ASSUMED,
        rows=rows,
        candidates=[asdict(c) for c in waves.candidates(shape, tile, soft, gpu)],
        rows_that_hide_sums=waves.rows_that_hide_sums(gpu),
    )


def show(found: Record) -> None:
    """Print a row a kernel."""
    if "candidates" in found:
        shape, gpu = found["shape"], found["gpu"]["name"]
        terminal.table(f"soften_kernel on an {gpu}, predicted", wave_rows(found))
        size = f"{shape['rows']} × {shape['hidden']} × {shape['vocab']}"
        terminal.table(f"A call of {size} on an {gpu}, predicted", candidate_rows(found))
        terminal.note(f"assumed: {'; '.join(found['assumed'])}")
        return
    terminal.table(f"kernels compiled for sm_{found['shape']['arch']}", kernel_rows(found))


def markdown(found: Record, tokens: int) -> str:
    """The kernels as a section of a document."""
    if "candidates" in found:
        lines = "Predicted from machine code and shapes; assumed: " + "; ".join(found["assumed"])
        return section(found, f"{lines}.", wave_rows(found), candidate_rows(found))
    return section(found, kernel_rows(found))


def wave_rows(found: Record) -> Rows:
    """A row a call and number of rows: how `soften_kernel` fills the GPU."""
    columns = ["call", "rows", "tiles", "waves", "busy", "registers", "stages", "outside", "after"]
    rows = [
        [
            r["call"],
            f"{r['tokens']}",
            f"{r['tiles']}",
            f"{r['waves']:.1f}",
            f"{r['busy']:.1%}",
            f"{r['registers']}",
            f"{found['tile']['stages']}",
            f"{r['outside']}",
            f"{r['after']:.0f} of {r['matrix'] + r['after']:.0f}",
            f"{r['share']:.1%}",
        ]
        for r in found["rows"]
    ]
    return [*columns, "of the peak"], rows


def candidate_rows(found: Record) -> Rows:
    """A row a way to make the call, the fastest first."""
    rows = [
        [c["call"], c["name"], f"{1e3 * c['seconds']:.2f}", f"{c['share']:.1%}", c["refuted"]]
        for c in sorted(found["candidates"], key=lambda c: (c["call"], c["seconds"]))
    ]
    return ["call", "candidate", "ms", "of the peak", "refuted by"], rows


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


def _failed(found: Record) -> bool:
    """Return whether a kernel spills, or asks for more shared memory than a block can have."""
    limit = found["shape"].get("shared_limit", math.inf)  # waves have none
    return any(r["spill_bytes"] or r["shared_bytes"] > limit for r in found["rows"])


BENCH = Bench(
    verb="compile",
    help="registers, spills, matrix instructions; no GPU",
    add_options=add_options,
    run=run,
    records=(
        *(f"compile-sm{arch}" for arch in ARCHITECTURES),
        *(f"waves-sm{arch}" for arch in WAVES),
    ),
    show=show,
    markdown=markdown,
    failed=_failed,
)
