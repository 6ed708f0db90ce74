"""Where the time goes: a trace, a table of kernels, and the share that is this library's own.

The share of a step that is ours outside products and attention: what runs inside comal_kernels'
ops other than matrix products, plus all time in which no operator runs (Python: ours, autograd's
and the model's alike). The model's own norms, rotary embeddings and activations, and the optimizer,
are counted as what they are.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import models, options, record
from bench.benches.head import floors
from bench.benches.step import make_pairs
from bench.contender import Contender
from bench.measure import hardware
from bench.measure.honesty import solve
from bench.measure.timing import Job
from bench.models import SMOLLM2
from bench.pairs import plain_logps
from bench.peers import ours
from bench.render import terminal as show
from bench.trainers import OURS, TRAINERS
from bench.trainers.base import Task
from comal_fast.errors import InputError

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "_addmm_activation", "linear"}
OPTIMIZER = ("adam", "linalg_vector_norm", "_foreach_")
OWN = "comal_kernels::"
SHOWN = 20  # rows of the table
NCU = (
    "ncu --set full --target-processes all --launch-skip 20 --launch-count 40 -o head "
    "python -m bench head --device cuda --tokens 8192 --peers none --repeat 1"
)


def register(benches: Any) -> None:
    """Add `profile`."""
    parser = benches.add_parser("profile", help="kernels, bytes, rates; what share is ours")
    parser.add_argument("what", choices=("head", "step"), help="the loss alone, or a whole step")
    options.add(parser, "device", "dtype", "json", "plot")
    parser.add_argument("--tokens", type=options.positive, help="head: response tokens")
    parser.add_argument("--hidden", type=options.positive, help="head: width of the states")
    parser.add_argument("--vocab", type=options.positive, help="head: words")
    parser.add_argument("--model", choices=tuple(models.MODELS), help="step: which model")
    parser.add_argument("--pairs", type=options.positive, help="step: pairs")
    parser.add_argument("--response", type=options.positive, help="step: median response tokens")
    parser.add_argument("--trace", type=options.writable, help="write a trace for Perfetto")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Profile one run after a warm one; print; write where asked."""
    other = {"head": ("model", "pairs", "response"), "step": ("tokens", "hidden", "vocab")}
    for name in other[args.what]:
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: means nothing to `profile {args.what}`")
    dtype = options.dtype(args)
    before = hardware.measure(args.device, dtype, 0.0)
    events, wall, shape = (_head if args.what == "head" else _step)(args, dtype)
    after = hardware.measure(args.device, dtype, 0.0)  # twice: a roof is the best that was seen
    rows = kernels(events, dtype.itemsize, args.device)
    result = {
        "bench": f"profile-{args.what}",
        **record.environment(args.device),
        "shape": shape | {"dtype": str(dtype).removeprefix("torch.")},
        "wall": wall,
        "breakdown": breakdown(events, wall, args.device),
        "roofs": {
            "flops_per_second": max(before.flops, after.flops),
            "bytes_per_second": max(before.bandwidth, after.bandwidth),
        },
        "rows": rows,
    }
    show.profile(result)
    print(f"counters of a GPU's kernels: {NCU}")
    record.finish(result, args)
    return 0


class _Done(Exception):
    """The trainer's loop is left after the profiled step."""


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
            raise _Done


def _profiler(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
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
    with contextlib.suppress(_Done):
        TRAINERS[OURS](Task(model, pairs, count, cuda), _ProfiledTurn(prof))
    shape = {"model": name, "pairs": count, "distinct_tokens": pairs.distinct_tokens}
    return *_finish(prof, args), shape


def _ancestors(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def _base(event: Any) -> str:
    return event.name.removeprefix("aten::")


def _own_time(event: Any, device: torch.device) -> float:
    """Seconds in the event itself, not in those it calls."""
    micro = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return micro / 1e6


def breakdown(events: list[Any], wall: float, device: torch.device) -> dict[str, float]:
    """Seconds by kind; they add up to `wall` on a CPU."""
    kinds = dict.fromkeys(
        ("products of the model", "products of the head", "attention",
         "the model's elementwise operators", "optimizer", "ours: around the head's products",
         "ours: no operator runs"), 0.0,
    )  # fmt: skip
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: counted with the operator that launched it
        seconds = _own_time(event, device)
        above = _ancestors(event)
        inside = any(OWN in name for name in (event.name, *above))
        if _base(event) in PRODUCTS:
            kinds["products of the head" if inside else "products of the model"] += seconds
        elif inside:
            kinds["ours: around the head's products"] += seconds
        elif any("scaled_dot_product" in name for name in (event.name, *above)):
            kinds["attention"] += seconds
        elif any(mark in name.lower() for mark in OPTIMIZER for name in (event.name, *above)):
            kinds["optimizer"] += seconds
        else:
            kinds["the model's elementwise operators"] += seconds
    kinds["ours: no operator runs"] = max(0.0, wall - sum(kinds.values()))
    return kinds


def kernels(events: list[Any], itemsize: int, device: torch.device) -> list[dict[str, Any]]:
    """Operators by their shapes, longest first: calls, seconds, bytes, achieved rates."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        seconds = _own_time(event, device)
        if event.device_type != torch.autograd.DeviceType.CPU or seconds <= 0:
            continue
        shapes = [s for s in event.input_shapes or [] if s and all(isinstance(n, int) for n in s)]
        key = (event.name, str(shapes))
        group = groups.setdefault(
            key, {"name": event.name, "shapes": shapes, "calls": 0, "seconds": 0.0, "flops": 0.0}
        )
        group["calls"] += 1
        group["seconds"] += seconds
        group["flops"] += event.flops or 0
    rows = sorted(groups.values(), key=lambda g: -g["seconds"])[:SHOWN]
    for row in rows:
        row["bytes"] = row["calls"] * itemsize * least_elements(row["name"], row["shapes"])
        row["bytes_per_second"] = row["bytes"] / row["seconds"]
        row["flops_per_second"] = row["flops"] / row["seconds"]
    return rows


def least_elements(name: str, shapes: list[list[int]]) -> int:
    """Elements that an operator must read and write: its inputs and one result."""
    sizes = [int(torch.Size(s).numel()) for s in shapes]
    if not sizes:
        return 0
    base = name.removeprefix("aten::")
    if base in PRODUCTS and len(shapes) >= 2:
        added = 1 if base in ("addmm", "addmm_", "baddbmm", "_addmm_activation") else 0
        a, b = shapes[added : added + 2]  # what may follow is the result's own place
        result = (a[0] if len(a) == 3 else 1) * a[-2] * b[-1]
        return sum(sizes[: added + 2]) + result
    return sum(sizes) + max(sizes)
