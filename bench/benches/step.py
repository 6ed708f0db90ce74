"""A whole prox step of a model: this library's trainer against TRL's and the authors' loop.

Same pairs, same reference log-probs, models loaded as a run loads them. Each trainer is tried in
its modes, and the fastest counts (`trainers/contest.py`). The first step's loss and gradient norm
must agree with the plain loop's, or there is no time.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.measure.isolated import Failed
from bench.models import MODELS, SMOLLM2
from bench.pairs import Pairs, make_pairs
from bench.record import Record, Row
from bench.render import plots, terminal
from bench.render.formats import Rows, device_text, gib, spread
from bench.render.markdown import section
from bench.trainers import AUTHORS, CONTESTANTS, OURS
from bench.trainers.contest import Worker, measure_by_turns, measure_in_a_row
from bench.trainers.worker import Setting
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # relative, of loss and norm
PEERS = (  # by default, on a CPU and on a GPU
    ["trl", "authors"],
    ["stock", "recomputed", "lean", "leanest", "lora", "trl", "authors"],
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `step`."""
    add_sizes(parser)
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=(*CONTESTANTS, "none"),
        help="beside ours; `unshared`: ours, a prompt run again for every response; `stock`: "
        "without Liger's kernels; `recomputed`, `lean`, `leanest`, `lora`: ours in less memory; "
        "`plug-in`: TRL's loop with our loss. Default: trl authors, on a GPU all but `unshared` "
        "and `plug-in`",
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add what says which step it is."""
    options.add(parser, "device", "dtype", "repeat")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: what suits the device")
    parser.add_argument("--pairs", type=options.positive, help="pairs of an optimiser step")
    parser.add_argument("--response", type=options.positive, help="median tokens of a response")
    parser.add_argument(
        "--responses-per-prompt", type=options.positive, default=2, help="even: pairs of two"
    )
    parser.add_argument("--prompts", help="as data.prompts, for smollm2; default: the built-in")


def run(args: argparse.Namespace) -> Record:
    """Return the trainers that agree, with their times; and why others have none."""
    peers = options.default(args, "peers", *PEERS)
    # the plain loop first: it sets the measure
    keys = sorted(
        (key for key in CONTESTANTS if key == "comal" or key in peers),
        key=lambda key: key != "authors",
    )
    return measured(args, keys, "step-trl" if "plug-in" in peers else "step")


def measured(args: argparse.Namespace, keys: list[str], name_of_record: str) -> Record:
    """Measure the contestants called `keys`, which set out from the same pairs.

    Args:
        args: The options of `add_sizes`, and those that all benches of steps share.
        keys: Of CONTESTANTS, in the order of their turns.
        name_of_record: Its `bench`.
    """
    dtype_name = str(options.dtype(args)).removeprefix("torch.")
    name = options.default(args, "model", SMOLLM2, "llama3-8b")
    count = options.default(args, "pairs", 4, 16)
    median = options.default(args, "response", 64, 256)
    each = args.responses_per_prompt
    if each % 2:
        raise InputError(f"--responses-per-prompt: {each} is odd; pairs are of two")
    if args.prompts and name != SMOLLM2:
        raise InputError(f"--prompts: {name} has no tokenizer here; only {SMOLLM2} takes prompts")
    if dtype_name not in TOLERANCE:
        raise InputError(f"--dtype: {dtype_name} is not trained in; use {', '.join(TOLERANCE)}")
    pairs = make_pairs(name, count, median, 4 * median, each // 2, args.prompts or "builtin")
    sizes = {
        "pairs": len(pairs),
        "distinct_tokens": pairs.distinct_tokens,
        "response_tokens": pairs.response_tokens,
    }
    flops = useful_flops(name, sizes)

    def recorded(rows: list[Row]) -> Record:
        rows = [dict(row) for row in rows]
        agree(rows, TOLERANCE[dtype_name])
        for row in rows:
            if "seconds" in row:
                seconds = row["seconds"]["median"]
                row["tokens_per_second"] = pairs.distinct_tokens / seconds
                row["flops_per_second"] = flops / seconds
        return record.new(
            name_of_record,
            args.device,
            model=name,
            shape={
                "dtype": dtype_name,
                **sizes,
                "padded_tokens": pairs.padded_tokens,
                "responses_per_prompt": each,
                "lengths": pairs.lengths,
                "prompt_lengths": [len(p) for p in pairs.prompts],
                "checkpointing": False,  # of ours: on a GPU its memory decides
            },
            useful_flops=flops,
            rows=rows,
        )

    setting = Setting(name, str(args.device), dtype_name, torch.get_num_threads())
    pairs = pairs.with_reference(reference_logps(setting, pairs))
    repeat = options.default(args, "repeat", 3, 5)

    def keep(rows: list[Row]) -> None:
        args.keep(recorded(rows))

    if args.device.type == "cpu":
        with progress(f"training {name}", len(keys) * (1 + repeat), "steps") as advance:
            return recorded(measure_by_turns(setting, pairs, keys, repeat, advance, keep))
    with progress(f"training {name}", len(keys), "trainers") as advance:
        return recorded(measure_in_a_row(setting, pairs, keys, repeat, advance, keep))


def useful_flops(model: str, sizes: Mapping[str, Any]) -> float:
    """Return the FLOP of a step's products: 6 for each weight and each token that meets it.

    Of every response the last token goes through no layer, since it predicts nothing, and only
    tokens of responses pass the head. Attention and what is recomputed do not count.

    Args:
        model: One of MODELS.
        sizes: `pairs`, `distinct_tokens` and `response_tokens` of a step, as records have them.
    """
    shape = MODELS[model]
    layer_tokens = sizes["distinct_tokens"] - 2 * sizes["pairs"]
    head = shape.vocab * shape.hidden * sizes["response_tokens"]
    return 6.0 * (shape.block_parameters * layer_tokens + head)


def reference_logps(setting: Setting, pairs: Pairs) -> list[float]:
    """Return the pairs' log-probs under the model, made in a process of its own.

    Raises:
        InputError: The model can't be loaded there.
    """
    worker = Worker(setting)
    try:
        logps: list[float] = worker.ask("logps", pairs)
    except Failed as error:
        raise InputError(f"{setting.model}: {error}") from None
    finally:
        worker.end()
    return logps


def agree(rows: list[Row], tolerance: float) -> None:
    """Take the time from rows whose first loss and norm are not the plain loop's.

    Where that loop is not among them, or failed, the first row takes its place.
    """
    known = [row for row in rows if "first" in row]
    if not known:
        return
    other_norm = {contestant.name for contestant in CONTESTANTS.values() if contestant.other_norm}
    base = next((row for row in known if row["name"] == AUTHORS), known[0])
    for row in known:
        for quantity, value in row["first"].items():
            if quantity == "grad_norm" and row["name"] in other_norm:
                continue
            off = abs(value - base["first"][quantity]) / abs(base["first"][quantity])
            if not off <= tolerance:
                row["why"] = (
                    f"wrong result, not timed: {quantity} {value:.6g}, "
                    f"but {base['first'][quantity]:.6g} by {base['name']}"
                )
                row.pop("seconds", None)
        row["agrees_with"] = base["name"]


def show(found: Record) -> None:
    """Print the trainers, fastest first."""
    shape = found["shape"]
    title = (
        f"One step of {found['model']}: {shape['pairs']} pairs, "
        f"{shape['distinct_tokens']} distinct tokens, {shape['padded_tokens']} padded, "
        f"{shape['dtype']}, {device_text(found)}"
    )
    terminal.table(title, step_rows(found))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """The trainers as a section of a document."""
    shape = found["shape"]
    what = (
        f"{found['model']}, {shape['pairs']} pairs, {shape['distinct_tokens']} distinct tokens "
        f"({shape['padded_tokens']} in a padded batch), {shape['dtype']}:"
    )
    return section(found, what, step_rows(found))


def step_rows(found: Record) -> Rows:
    """A row a trainer, fastest first. Rates are counted anew: older records counted otherwise."""
    flops = useful_flops(found["model"], found["shape"])
    timed = sorted(
        (r for r in found["rows"] if "seconds" in r), key=lambda r: r["seconds"]["median"]
    )
    rows = [
        [
            r["name"],
            r.get("mode", ""),
            spread(r["seconds"], "s"),
            f"{r['tokens_per_second']:.0f}",
            f"{flops / r['seconds']['median'] / 1e12:.3g}",
            gib(r["peak"]),
            f"{r['first']['loss']:.5f}",
            f"{r['first']['grad_norm']:.4g}",
        ]
        for r in timed
    ]
    columns = ["trainer", "mode", "s a step, median (quartiles)", "tokens/s", "TFLOP/s"]
    return [*columns, "peak GiB", "first loss", "gradient norm"], rows


def draw(found: Record) -> bytes:
    """A picture: a bar a trainer."""
    shape, device = found["shape"], found["device"]
    title = (
        f"One training step of {found['model']}, {shape['distinct_tokens']} tokens, "
        f"{shape['dtype']}, {device['name']}"
    )
    return plots.bars(found["rows"], lambda tokens: title)


BENCH = Bench(
    verb="step",
    help="a whole training step, against other trainers",
    add_options=add_options,
    run=run,
    records=("step", "step-trl"),
    show=show,
    markdown=markdown,
    draw=draw,
    failed=lambda found: any(r["name"] == OURS and r.get("why") for r in found["rows"]),
    in_all=(Call("cpu", 2), Call("cuda", 2)),
)
