"""Predict what each optimisation of an 8B step is worth, part by part, without measuring it.

The same levers as `bench levers` measures, with the counts of `comal_fast.plan` and the rates of a
GPU's data sheet. The first row is the step that was measured, so that the error is known.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import options, record
from bench.bench import Bench
from bench.benches.step import useful_flops
from bench.models import MODELS
from bench.pairs import make_pairs
from bench.record import Record, Row
from bench.render import terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from bench.trainers import OURS
from comal_fast.plan import count, memory
from comal_fast.plan.elementwise import FUSED, LIGER
from comal_fast.plan.machines import MACHINES, predict
from comal_fast.plan.memory import LargestPass
from comal_fast.plan.modes import FULL_8, Mode
from comal_fast.plan.modes import FUSED as IN_BACKWARD
from comal_fast.plan.search import usable

# bytes a weight of an 8-bit update: by several kernels; by one, which moves 10, but whose
# instructions take as long as 26 (bench/LOG.md)
EAGER_8_BIT, ONE_KERNEL_8_BIT = 50.0, 26.0
PLAIN = Mode("AdamW")  # moments in the weights' dtype


@dataclass(frozen=True)
class Lever:
    """A row: what is changed of the row before, or of the step as a whole."""

    name: str
    load: dict[str, Any]  # fields of `count.Load`
    mode: Mode = PLAIN
    passes: int = 1


def levers(layers: int) -> list[Lever]:
    """Return the rows for a model of so many layers: each has all levers of the rows before."""
    before = {"recomputed": 1.0, "attention": count.FLASH_2, "sweeps": count.CLIPPED_BY_A_SWEEP}
    liger = before | {"layers": LIGER}
    kept = liger | {"recomputed": 0.0}
    clipped = kept | {"sweeps": 1.0}
    fused = clipped | {"layers": FUSED}
    flash_3 = fused | {"attention": count.FLASH_3}
    all_layers = replace(PLAIN, recomputed=layers)
    lean = replace(IN_BACKWARD, recomputed=layers)
    in_backward = {"state": IN_BACKWARD.state_bytes, "sweeps": 0.0, "recomputed": 1.0}
    eight_bit = flash_3 | {"state": FULL_8.state_bytes, "update": ONE_KERNEL_8_BIT}
    return [
        Lever("as measured: stock layers, everything recomputed", before, all_layers),
        Lever("+ Liger's kernels", liger, all_layers),
        Lever("+ nothing recomputed", kept),
        Lever("+ the clip coefficient in the update", clipped),
        Lever("+ the residual's sum in the norm's kernel", fused),
        Lever("+ FlashAttention 3", flash_3),
        Lever("the same, 8-bit moments, four passes", eight_bit, FULL_8, 4),
        Lever("8-bit in backward, by several kernels", before | in_backward
              | {"update": EAGER_8_BIT}, lean),
        Lever("8-bit in backward, by one kernel, with all levers", flash_3 | in_backward
              | {"update": ONE_KERNEL_8_BIT}, lean),
    ]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `predict`."""
    parser.add_argument("--gpu", choices=tuple(MACHINES), default="h200")
    parser.add_argument("--model", choices=tuple(MODELS), default="llama3-8b")
    parser.add_argument("--pairs", type=options.positive, default=16, help="pairs of a step")
    parser.add_argument(
        "--response", type=options.positive, default=256, help="median tokens of a response"
    )


def run(args: argparse.Namespace) -> Record:
    """Return each row's time by part, its memory, and the share of the products' peak rate."""
    shape, machine = MODELS[args.model], MACHINES[args.gpu]
    pairs = make_pairs(args.model, args.pairs, args.response, 4 * args.response)
    sizes = {
        "pairs": len(pairs),
        "distinct_tokens": pairs.distinct_tokens,
        "response_tokens": pairs.response_tokens,
    }
    flops = useful_flops(args.model, sizes)
    rows: list[Row] = []
    for lever in levers(shape.layers):
        load = count.Load(pairs.lengths, pairs.response_tokens, lever.passes, 2, **lever.load)
        parts = predict(machine, count.parts(shape, load))
        seconds = sum(part["seconds"] for part in parts)
        largest = LargestPass(
            -(-load.tokens // lever.passes), -(-load.responses // lever.passes), lever.passes == 1
        )
        held = memory.peak(memory.training(shape, lever.mode, largest)).bytes
        rows.append({
            "name": lever.name, "predicted": seconds, "share": flops / seconds / machine.flops,
            "peak": held, "fits": [gib for gib in (24, 80, 139) if held <= usable(gib * 2**30)],
            "parts": {part["name"]: part["seconds"] for part in parts},
        })  # fmt: skip
    folders = [f.name for f in record.RESULTS.iterdir() if args.gpu in f.name.split("-")]
    measured = next((r for f in folders if (r := record.newest("step", f))), None)
    same = measured and measured["shape"]["distinct_tokens"] == sizes["distinct_tokens"]
    return record.new(
        "predicted-levers",
        torch.device("cpu"),
        machine=machine.name,
        peak_flops=machine.flops,
        model=args.model,
        shape=sizes | {"dtype": "bfloat16"},
        measured=_measured(measured) if measured and same else None,
        rows=rows,
    )


def _measured(found: Record) -> dict[str, Any] | None:
    """Return the time of our row, if it is one of the step as the first row has it."""
    ours = next((r for r in found["rows"] if r["name"] == OURS and "seconds" in r), None)
    if ours is None or not found["shape"]["checkpointing"]:
        return None
    return {"seconds": ours["seconds"]["median"], "date": found["date"]}


def show(found: Record) -> None:
    """Print a row a lever."""
    terminal.table(f"Predicted: {found['model']} on one {found['machine']}", lever_rows(found))
    terminal.line(error_text(found))


def markdown(found: Record, tokens: int) -> str:
    """The levers as a section of a document, labelled as a model."""
    title = (
        f"A model, not a measurement: a step of {found['model']} on one {found['machine']}, "
        f"{found['shape']['distinct_tokens']} tokens, ms by part; the share is of "
        f"{found['peak_flops'] / 1e12:.0f} TFLOP/s."
    )
    return section(found, title, lever_rows(found), error_text(found))


def error_text(found: Record) -> str:
    """Return by how much the first row misses what was measured."""
    measured, predicted = found["measured"], found["rows"][0]["predicted"]
    if measured is None:
        return "The first row's step was not measured on such a GPU: the error is not known."
    error = predicted / measured["seconds"] - 1
    return (
        f"The first row's step took {measured['seconds']:.2f} s ({measured['date']}): the model is "
        f"off by {error:+.0%} there, where its products' share was fitted."
    )


def lever_rows(found: Record) -> Rows:
    """Return a row a lever, in the order in which they add up."""
    names = list(found["rows"][0]["parts"])
    rows = [
        [
            row["name"],
            *(f"{1e3 * row['parts'][name]:.0f}" for name in names),
            f"{row['predicted']:.2f}",
            f"{row['share']:.0%}",
            f"{row['peak'] / 2**30:.0f}",
        ]
        for row in found["rows"]
    ]
    return ["step", *names, "s", "share of the peak", "GiB"], rows


BENCH = Bench(
    verb="predict",
    help="what each lever of a step should be worth, by the time model",
    add_options=add_options,
    run=run,
    records=("predicted-levers",),
    show=show,
    markdown=markdown,
)
