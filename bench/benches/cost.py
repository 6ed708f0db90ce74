"""The cost model: time and memory of a prox step from counted FLOP and bytes, against measurement.

A part takes the longer of its products at the GEMM rate and its bytes at the memory's rate.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.measure import hardware
from bench.models import MODELS, SMOLLM2
from bench.pairs import make_pairs
from bench.record import Record, Row
from bench.render import terminal
from bench.render.formats import Rows, gib
from bench.render.markdown import section
from bench.trainers import OURS
from comal_fast.errors import InputError
from comal_fast.plan import count, memory
from comal_fast.plan.count import Load
from comal_fast.plan.machines import MACHINES, Machine, predict
from comal_fast.plan.modes import Mode
from comal_fast.plan.several import Traffic, traffic
from comal_fast.system.peak import bytes_in_use

PER_NODE = 8  # devices


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `model`."""
    gpus = (*MACHINES, "here")
    parser.add_argument("--gpu", choices=gpus, default="here", help="`here` measures this machine")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: the one measured here")
    parser.add_argument("--pairs", type=options.positive, help="pairs of an optimiser step")
    parser.add_argument("--response", type=options.positive, help="median tokens of a response")
    parser.add_argument("--nodes", type=options.positive, help="nodes of 8, weights sharded")
    options.add(parser, "device")


def run(args: argparse.Namespace) -> Record:
    """The prediction by part; beside it what was measured of the same step."""
    here = args.gpu == "here"
    if here and args.nodes:
        raise InputError("--nodes: only for a GPU of a data sheet; name one by --gpu")
    cuda = args.device.type == "cuda" if here else True
    name = args.model or (SMOLLM2 if not cuda else "llama3-8b")
    described = record.describe(args.device)
    libraries = 0.0 if cuda or not here else float(bytes_in_use(args.device))
    measured = None
    if here:
        measured = record.newest("step", described["folder"])
    else:
        folders = (f.name for f in record.RESULTS.iterdir() if args.gpu in f.name.split("-"))
        measured = next((r for f in folders if (r := record.newest("step", f))), None)
    same_load = args.pairs is None and args.response is None
    if measured and (measured["model"] != name or not same_load):
        measured = None
    load = _measured_load(measured) if measured else _new_load(args, name, cuda)
    dtype = {2: torch.bfloat16, 4: torch.float32}[load.itemsize]
    machine = (
        hardware.measure(args.device, dtype, described["memory"], _sizes(name, load))
        if here
        else MACHINES[args.gpu]
    )
    devices = PER_NODE * args.nodes if args.nodes else 1
    shape = MODELS[name]
    rows = predict(machine, count.parts(shape, load))
    held = held_at_peak(name, load, dtype, cuda)
    if libraries:
        held["Python and libraries"] = libraries
    if args.nodes:
        held = _sharded(held, devices)
        mode = Mode(dtype=str(dtype).removeprefix("torch."))
        rows.append(communication(machine, traffic(shape, mode, devices, args.nodes)))
        computed = sum(row["seconds"] for row in rows[:-1])
        total = max(computed, rows[-1]["seconds"])
    else:
        total = sum(row["seconds"] for row in rows)
    return record.new(
        "model",
        args.device,
        machine=asdict(machine),
        model=name,
        shape={**asdict(load), "devices": devices},
        extrapolated=bool(args.nodes) or name == "llama3-70b",
        rows=rows,
        seconds=total,
        memory=held,
        peak=sum(held.values()),
        fits=sum(held.values()) <= machine.memory,
        measured=_measured(measured),
    )


def _sizes(name: str, load: Load) -> tuple[int, int, int]:
    shape = MODELS[name]
    return load.tokens // load.micro_batches, shape.hidden, shape.intermediate


def held_at_peak(name: str, load: Load, dtype: torch.dtype, cuda: bool) -> dict[str, float]:
    """Bytes held at the peak, by what holds them."""
    shape = MODELS[name]
    mode = Mode(
        dtype=str(dtype).removeprefix("torch."),
        recomputed=shape.layers if load.recomputed else 0,
    )
    batch = memory.LargestPass(
        load.tokens // load.micro_batches,
        load.responses // load.micro_batches,
        load.micro_batches == 1,
    )
    return memory.peak(memory.training(shape, mode, batch, cuda)).parts


def communication(machine: Machine, moved: Traffic) -> Row:
    """A row: sharded weights gathered for either pass, gradients scattered."""
    name = "communication (beside the computation)"
    row = {"name": name, "flops": 0.0, "bytes": moved.inside, "bound": "network"}
    return row | {"seconds": moved.seconds(machine)}


def _sharded(held: dict[str, float], devices: int) -> dict[str, float]:
    return {name: x / devices if name in memory.SHARED["train"] else x for name, x in held.items()}


def _new_load(args: argparse.Namespace, name: str, cuda: bool) -> Load:
    """The load of one device."""
    pairs, median = args.pairs or (16 if cuda else 4), args.response or (256 if cuda else 64)
    made = make_pairs(name, pairs, median, 4 * median)
    return Load(made.lengths, made.response_tokens, 1, 2 if cuda else 4, float(cuda))


def _measured_load(measured: Record) -> Load:
    shape = measured["shape"]
    ours = next(row for row in measured["rows"] if row["name"] == OURS)
    item = getattr(torch, shape["dtype"]).itemsize
    micro = -(-shape["pairs"] // ours.get("micro_pairs", shape["pairs"]))
    return Load(
        shape["lengths"], shape["response_tokens"], micro, item, float(shape["checkpointing"])
    )


def _measured(found: Record | None) -> dict[str, Any] | None:
    """Time and memory that a record of the same step holds, and where they were measured."""
    ours = next((r for r in found["rows"] if r["name"] == OURS), None) if found else None
    if not found or not ours or "seconds" not in ours:
        return None
    return {
        "seconds": ours["seconds"]["median"],
        "peak": ours["peak"],
        "date": found["date"],
        "commit": found["commit"],
        "device": found["device"]["name"],
    }


def show(found: Record) -> None:
    """Print the prediction by part, memory, and how far from what was measured."""
    machine, label = found["machine"], " (extrapolated)" if found["extrapolated"] else ""
    title = (
        f"Predicted{label}: a step of {found['model']} on {found['shape']['devices']} × "
        f"{machine['name']}, {sum(found['shape']['lengths'])} tokens; rates: {machine['source']}"
    )
    terminal.table(title, part_rows(found))
    terminal.table("Predicted memory of a device", held_rows(found))
    if not found["fits"]:
        terminal.note(f"does not fit {machine['memory'] / 2**30:.0f} GiB")
    measured = found["measured"]
    if measured is None:
        terminal.note("this step was not measured on such a device: no error to report")
        return
    for what, unit, scale in (("seconds", "s", 1.0), ("peak", "GiB", 2.0**30)):
        guess, truth = found[what] / scale, measured[what] / scale
        terminal.line(
            f"{what}: predicted {guess:.2f} {unit}, measured {truth:.2f} {unit} "
            f"({measured['date']}): error {guess / truth - 1:+.0%}"
        )


def markdown(found: Record, tokens: int) -> str:
    """The prediction as a section of a document."""
    shape, measured = found["shape"], found["measured"]
    parts: list[str | Rows] = [
        f"A step of {found['model']} on {shape['devices']} × {found['machine']['name']}, "
        f"{sum(shape['lengths'])} tokens{', extrapolated' if found['extrapolated'] else ''}; "
        f"rates: {found['machine']['source']}.",
        part_rows(found),
        held_rows(found),
    ]
    if measured:
        wrong = found["seconds"] / measured["seconds"] - 1, found["peak"] / measured["peak"] - 1
        parts.append(
            f"Measured: {measured['seconds']:.2f} s and {gib(measured['peak'])} GiB; "
            f"the prediction is off by {wrong[0]:+.0%} and {wrong[1]:+.0%}."
        )
    return section(found, *parts)


def part_rows(found: Record) -> Rows:
    """A row a part of the step: counted, and predicted."""
    rows = [
        [
            r["name"],
            f"{r['flops'] / 1e12:.2f}",
            f"{r['bytes'] / 1e9:.1f}",
            f"{r['seconds']:.3f}",
            r["bound"],
        ]
        for r in found["rows"]
    ]
    rows.append(["step", "", "", f"{found['seconds']:.3f}", ""])
    return ["part", "TFLOP", "GB", "s", "bound by"], rows


def held_rows(found: Record) -> Rows:
    """A row for each thing that holds memory at the peak."""
    rows = [[name, gib(size)] for name, size in found["memory"].items()]
    return ["what", "GiB"], [*rows, ["peak", gib(found["peak"])]]


BENCH = Bench(
    verb="model",
    help="predict a step's time and memory; compare",
    add_options=add_options,
    run=run,
    records=("model",),
    show=show,
    markdown=markdown,
    in_all=(Call("cpu", 8), Call("cuda", 8)),
)
