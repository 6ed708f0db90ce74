"""Measure what this device reaches: a copy, and the products of an 8B step in their shapes.

Rates in bursts are what a kernel is compared with; after seconds of work a GPU lowers its clocks,
and the rate that lasts is what a training step can have.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.measure.timing import Clock, summary
from bench.models import MODELS, SMOLLM2
from bench.record import Record, Row
from bench.render import terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from comal_fast.system.terminal import progress

COPY = "copy"
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
BATCH = 20  # runs between two looks at the clock, under sustained load


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `ceilings`."""
    options.add(parser, "device", "dtype", "repeat")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: what suits the device")
    parser.add_argument("--step-tokens", type=options.positive, help="tokens of the layers")
    parser.add_argument("--sustain", type=float, help="seconds of one product without a pause")


def run(args: argparse.Namespace) -> Record:
    """Return the rate of each product in each direction, and of one that is kept up."""
    dtype, device = options.dtype(args), args.device
    name = options.default(args, "model", SMOLLM2, "llama3-8b")
    tokens = options.default(args, "step_tokens", 512, 10_949)
    sustain = options.default(args, "sustain", 0.5, 10.0)
    jobs = {COPY: _copy(device)} | _products(name, tokens, dtype, device)
    rows: list[Row] = []

    def recorded() -> Record:
        shape = {"dtype": str(dtype).removeprefix("torch."), "tokens": tokens}
        return record.new("ceilings", device, model=name, shape=shape, rows=rows)

    clock, repeat = Clock(device), args.repeat or 10
    with progress("ceilings", len(jobs) + 1, "shapes") as advance:
        for label, (make, work) in jobs.items():
            job = make()
            job()
            seconds = summary([clock(job) for _ in range(repeat)])
            rows.append({"name": label, "seconds": seconds, **_rates(work, seconds["median"])})
            advance()
            args.keep(recorded())
        longest = max((label for label in jobs if label != COPY), key=lambda key: jobs[key][1])
        rows.append(_sustained(longest, *jobs[longest], seconds=sustain, device=device))
        advance()
    return recorded()


Job = Callable[[], Any]
Work = float  # FLOP of a product; of the copy bytes, as a negative number


def _copy(device: torch.device) -> tuple[Callable[[], Job], Work]:
    count = (1 << 30 if device.type == "cuda" else 1 << 26) // 4

    def make() -> Job:
        source, target = (torch.randn(count, device=device) for _ in range(2))
        return lambda: target.copy_(source)

    return make, -2.0 * 4 * count


def _products(
    name: str, tokens: int, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[Callable[[], Job], Work]]:
    """Return the products of a layer's weights and of the head: forward, dX and dW of each.

    Two weights that read the same input are also tried as one, half as many products of twice the
    width.
    """
    shape = MODELS[name]
    width, inner = shape.hidden, shape.intermediate
    queries, keys = shape.queries, shape.keys
    sizes = {
        "queries": (width, queries),
        "keys": (width, keys),
        "queries, keys and values as one": (width, queries + 2 * keys),
        "attention's output": (queries, width),
        "gate": (width, inner),
        "gate and up as one": (width, 2 * inner),
        "down": (inner, width),
        "head": (width, shape.vocab),
    }
    found: dict[str, tuple[Callable[[], Job], Work]] = {}
    for label, (into, out) in sizes.items():
        operands = {
            "forward": ((tokens, into), (into, out)),
            "dX": ((tokens, out), (out, into)),
            "dW": ((out, tokens), (tokens, into)),
        }
        for direction, (left, right) in operands.items():
            made = _product(left, right, direction, dtype, device)
            found[f"{label}, {direction}"] = made, 2.0 * tokens * into * out
    return found


def _product(
    left: tuple[int, int],
    right: tuple[int, int],
    direction: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], Job]:
    """Return what makes the job: operands lie in memory as in training (weights (out, in))."""

    def make() -> Job:
        flip_left, flip_right = direction == "dW", direction == "forward"
        a = torch.randn(left[::-1] if flip_left else left, device=device).to(dtype)
        b = torch.randn(right[::-1] if flip_right else right, device=device).to(dtype)
        a, b = a.t() if flip_left else a, b.t() if flip_right else b
        return lambda: torch.mm(a, b)

    return make


def _sustained(
    label: str, make: Callable[[], Job], work: Work, seconds: float, device: torch.device
) -> Row:
    """Return the rate of a product in the second half of so many seconds, and the clocks then."""
    job, before = make(), clocks(device)
    start, half, done = time.perf_counter(), 0.0, 0
    while (now := time.perf_counter() - start) < seconds:
        if not half and now >= seconds / 2:
            half, done = now, 0
        for _ in range(BATCH if device.type == "cuda" else 1):
            job()
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    after = clocks(device)
    each = (time.perf_counter() - start - half) / done
    row = {"name": f"{label}, kept up for {seconds:g} s", "seconds": summary([each])}
    return {**row, **_rates(work, each), "clocks_before": before, "clocks_after": after}


def clocks(device: torch.device) -> dict[str, float] | None:
    """Return MHz, watts and degrees as nvidia-smi has them; None where it is not there."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits"]
    said = subprocess.run([*command, f"--id={device.index or 0}"], capture_output=True, text=True)
    try:
        values = [float(part) for part in said.stdout.split(",")]
        return dict(zip(CLOCKS.split(","), values, strict=True))
    except ValueError:
        return None


def _rates(work: Work, seconds: float) -> dict[str, float]:
    if work < 0:
        return {"bytes_per_second": -work / seconds}
    return {"flops_per_second": work / seconds}


def show(found: Record) -> None:
    """Print a row a shape."""
    terminal.table(f"Ceilings of {found['device']['name']}", ceiling_rows(found))


def markdown(found: Record, tokens: int) -> str:
    """The shapes as a section of a document."""
    shape = found["shape"]
    return section(
        found,
        f"Products of {found['model']}, {shape['tokens']} tokens, {shape['dtype']}:",
        ceiling_rows(found),
    )


def ceiling_rows(found: Record) -> Rows:
    """Return a row a shape, in the order of the run."""
    rows = []
    for row in found["rows"]:
        copied = "bytes_per_second" in row
        rate = row["bytes_per_second" if copied else "flops_per_second"]
        unit = f"{rate / 1e9:,.0f} GB/s" if copied else f"{rate / 1e12:,.3g} TFLOP/s"
        after = row.get("clocks_after") or {}
        said = ", ".join(f"{name} {value:g}" for name, value in after.items())
        rows.append([row["name"], f"{1e3 * row['seconds']['median']:.3f}", unit, said])
    return ["what", "ms, median", "rate", "clocks at the end"], rows


BENCH = Bench(
    verb="ceilings",
    help="what the device reaches: a copy, and a step's products",
    add_options=add_options,
    run=run,
    records=("ceilings",),
    show=show,
    markdown=markdown,
    in_all=(Call("cuda", 0),),
)
