"""Where the time goes: a trace, a table of operators, and the share that is this library's own."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from bench import models, options, record
from bench.bench import Bench, Call
from bench.benches.head import floors
from bench.contender import Contender
from bench.measure import hardware
from bench.measure.honesty import solve
from bench.measure.operators import breakdown, busy_seconds, kernels, operators
from bench.measure.timing import Job
from bench.models import SMOLLM2, TINY
from bench.pairs import make_pairs, plain_logps
from bench.peers import ours
from bench.record import Record
from bench.render import plots, terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from bench.trainers import CONTESTANTS
from bench.trainers.base import Finished, Task
from comal_fast.errors import InputError

NCU = (
    "ncu --set full --target-processes all --launch-skip 20 --launch-count 40 -o head "
    "python -m bench head --device cuda --tokens 8192 --peers none --repeat 1"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `profile`."""
    parser.add_argument("what", choices=("head", "step"), help="the loss alone, or a whole step")
    options.add(parser, "device", "dtype")
    parser.add_argument("--tokens", type=options.positive, help="head: response tokens")
    parser.add_argument("--hidden", type=options.positive, help="head: width of the states")
    parser.add_argument("--vocab", type=options.positive, help="head: words")
    parser.add_argument("--model", choices=tuple(models.MODELS), help="step: which model")
    parser.add_argument("--pairs", type=options.positive, help="step: pairs")
    parser.add_argument("--response", type=options.positive, help="step: median response tokens")
    parser.add_argument("--trace", type=options.writable, help="write a trace for Perfetto")


def run(args: argparse.Namespace) -> Record:
    """The profile of one run after a warm one."""
    other = {"head": ("model", "pairs", "response"), "step": ("tokens", "hidden", "vocab")}
    for name in other[args.what]:
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: means nothing to `profile {args.what}`")
    dtype = options.dtype(args)
    small = args.model == TINY
    before = hardware.measure(args.device, dtype, 0.0, small=small)
    events, wall, shape = (_head if args.what == "head" else _step)(args, dtype)
    # twice: a roof is the best that was seen
    after = hardware.measure(args.device, dtype, 0.0, small=small)
    return record.new(
        f"profile-{args.what}",
        args.device,
        shape=shape | {"dtype": str(dtype).removeprefix("torch.")},
        wall=wall,
        breakdown=breakdown(events, wall, args.device),
        roofs={
            "flops_per_second": max(before.flops, after.flops),
            "bytes_per_second": max(before.bandwidth, after.bandwidth),
        },
        rows=operators(events, dtype.itemsize, args.device),
        kernels=kernels(events),
        busy=busy_seconds(events),
    )


class _ProfiledTurn:
    """One warm step, then one under the profiler."""

    def __init__(self, record_one: Any) -> None:
        self.profiler, self.count = record_one, 0

    def wait(self) -> None:
        if self.count == 1:
            self.profiler.__enter__()

    def done(self, loss: float, grad_norm: float) -> None:
        self.count += 1
        if self.count == 2:
            self.profiler.__exit__(None, None, None)
            raise Finished


def _profiler(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda" and ProfilerActivity.CUDA in supported_activities():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, record_shapes=True, with_flops=True)


def _finish(prof: profile, args: argparse.Namespace) -> tuple[list[Any], float]:
    """Events, and seconds from the first to the last."""
    if args.trace:
        prof.export_chrome_trace(str(args.trace))
        print(f"trace: {args.trace}")
    events = list(prof.events() or [])
    start = min(e.time_range.start for e in events)
    return events, (max(e.time_range.end for e in events) - start) / 1e6


def _head(args: argparse.Namespace, dtype: torch.dtype) -> tuple[list[Any], float, dict[str, Any]]:
    """Events, seconds and shape of the loss alone."""
    tokens, size = options.default(args, "tokens", 1024, 8192), options.size(args)
    p = size.problem(tokens)
    contender = Contender(ours.NAME, ours.loss)
    jobs: list[Job] = [lambda: solve(contender, p, dtype), *floors(p, 3).values()]
    for job in jobs:
        job()
    prof = _profiler(args.device)
    with prof:
        jobs[0]()
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
    return *_finish(prof, args), {"tokens": tokens, **size.text()}


def _step(args: argparse.Namespace, dtype: torch.dtype) -> tuple[list[Any], float, dict[str, Any]]:
    """Events, seconds and shape of a whole step."""
    cuda = args.device.type == "cuda"
    name = options.default(args, "model", SMOLLM2, "llama3-8b")
    count, median = (
        options.default(args, "pairs", 4, 16),
        options.default(args, "response", 64, 256),
    )
    pairs = make_pairs(name, count, median, 4 * median)
    model = models.load(name, args.device, dtype)
    pairs = pairs.with_reference(plain_logps(model, pairs))
    prof = _profiler(args.device)
    (mode,) = CONTESTANTS["comal"].modes(count, cuda)
    with contextlib.suppress(Finished):
        CONTESTANTS["comal"].train(Task(model, pairs, mode), _ProfiledTurn(prof))
    shape = {"model": name, "pairs": count, "distinct_tokens": pairs.distinct_tokens}
    return *_finish(prof, args), shape


def show(found: Record) -> None:
    """Print the breakdown, then the longest operators."""
    terminal.table(f"{found['bench']}: where {found['wall']:.3f} s go", breakdown_rows(found))
    roofs = found["roofs"]
    title = (
        f"longest operators; roofs measured here: {roofs['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"{roofs['bytes_per_second'] / 1e9:,.0f} GB/s"
    )
    terminal.table(title, operator_rows(found))
    if found["kernels"]:
        busy = f"busy for {found['busy']:.3f} of {found['wall']:.3f} s"
        terminal.table(f"longest kernels; the GPU is {busy}", kernel_rows(found))
    terminal.line(f"counters of a GPU's kernels: {NCU}")


def markdown(found: Record, tokens: int) -> str:
    """The breakdown as a section of a document."""
    return section(found, breakdown_rows(found))


def breakdown_rows(found: Record) -> Rows:
    """A row a kind of work, and its share; last, what is ours outside products and attention."""
    kinds = found["breakdown"]
    total = sum(kinds.values())
    rows = [[kind, f"{s:.3f}", f"{s / total:.1%}"] for kind, s in kinds.items()]
    mine = sum(s for kind, s in kinds.items() if kind.startswith("ours"))
    rows.append(["ours outside products and attention", f"{mine:.3f}", f"{mine / total:.1%}"])
    return ["what", "s", "share"], rows


def operator_rows(found: Record) -> Rows:
    """A row an operator, with its achieved rates."""
    rows = [
        [
            r["name"],
            " ".join("×".join(map(str, s)) for s in r["shapes"][:3]),
            str(r["calls"]),
            f"{r['seconds'] * 1e3:.1f}",
            f"{r['bytes'] / 2**20:,.0f}",
            f"{r['bytes_per_second'] / 1e9:,.1f}",
            f"{r['flops_per_second'] / 1e9:,.0f}" if r["flops"] else "",
        ]
        for r in found["rows"]
    ]
    return ["operator", "shapes", "calls", "ms", "least MiB", "GB/s", "GFLOP/s"], rows


def kernel_rows(found: Record) -> Rows:
    """A row a kernel of the GPU, with its share of all that ran."""
    rows = [
        [r["name"][:100], str(r["calls"]), f"{1e3 * r['seconds']:.2f}"]
        + [f"{r['seconds'] / found['busy']:.1%}"]
        for r in found["kernels"]
    ]
    return ["kernel", "calls", "ms", "of busy"], rows


def draw(found: Record) -> bytes:
    """A picture: the operators under the machine's roofs."""
    title = f"Roofline: {found['bench'].removeprefix('profile-')}, {found['device']['name']}"
    return plots.roofline(found["rows"], found["roofs"], found["wall"], title)


BENCH = Bench(
    verb="profile",
    help="operators, bytes, rates; what share is ours",
    add_options=add_options,
    run=run,
    records=("profile-head", "profile-step"),
    show=show,
    markdown=markdown,
    draw=draw,
    in_all=(
        Call("cpu", 5, "step"),
        Call("cuda", 5, "step"),
        Call("cuda", 6, "head"),
    ),
)
