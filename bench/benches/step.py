"""A whole prox step of a model: this library's trainer against TRL's and the authors' loop.

Same pairs, same reference log-probs, each trainer in its own process. On a CPU they take turns; on
a GPU, where they would not fit together, they run one after another. The first step's loss and
gradient norm must agree with the plain loop's, or there is no time.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.measure.isolated import Failed, Isolated
from bench.measure.timing import summary
from bench.models import MODELS, SMOLLM2
from bench.pairs import Pairs, make_pairs
from bench.record import Record, Row
from bench.render import plots, terminal
from bench.render.formats import Rows, device_text, gib, spread
from bench.render.markdown import section
from bench.trainers import AUTHORS, NAMES, OTHER_NORM, OURS, TRL
from bench.trainers.worker import Setting, serve
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # relative, of loss and norm
FIRST_MICRO = {AUTHORS: 2, TRL: 8}  # pairs to begin with on a GPU: fewer models made in vain


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `step`."""
    options.add(parser, "device", "dtype", "repeat")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: what suits the device")
    parser.add_argument("--pairs", type=options.positive, help="pairs of an optimiser step")
    parser.add_argument("--response", type=options.positive, help="median tokens of a response")
    parser.add_argument(
        "--responses-per-prompt", type=options.positive, default=2, help="even: pairs of two"
    )
    parser.add_argument("--prompts", help="as data.prompts, for smollm2; default: the built-in")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=(*NAMES, "none"),
        help="beside ours; `unshared`: ours, a prompt run again for every response; `lean`, "
        "`leanest`, `lora`: ours in less memory; `plug-in`: TRL's loop with our loss. "
        "Default: trl authors, on a GPU lean leanest lora too",
    )
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")


def run(args: argparse.Namespace) -> Record:
    """The trainers that agree, with their times; and why others have none."""
    cuda, dtype = args.device.type == "cuda", options.dtype(args)
    name = options.default(args, "model", SMOLLM2, "llama3-8b")
    count, median = (
        options.default(args, "pairs", 4, 16),
        options.default(args, "response", 64, 256),
    )
    each = args.responses_per_prompt
    if each % 2:
        raise InputError(f"--responses-per-prompt: {each} is odd; pairs are of two")
    if args.prompts and name != SMOLLM2:
        raise InputError(f"--prompts: {name} has no tokenizer here; only {SMOLLM2} takes prompts")
    pairs = make_pairs(name, count, median, 4 * median, each // 2, args.prompts or "builtin")
    dtype_name = str(dtype).removeprefix("torch.")
    if dtype_name not in TOLERANCE:
        raise InputError(f"--dtype: {dtype_name} is not trained in; use {', '.join(TOLERANCE)}")
    setting = Setting(
        name, str(args.device), dtype_name, torch.get_num_threads(), args.checkpointing or cuda
    )
    peers = options.default(
        args, "peers", ["trl", "authors"], [p for p in NAMES if p != "unshared"]
    )
    wanted = [NAMES[p] for p in NAMES if p == "comal" or p in peers]
    rows = measure(setting, pairs, wanted, options.default(args, "repeat", 3, 5))
    shape = MODELS[name]
    flops = 6 * (shape.block_parameters + shape.vocab * shape.hidden) * pairs.distinct_tokens
    for row in rows:
        if "seconds" in row:
            median_seconds = row["seconds"]["median"]
            row["tokens_per_second"] = pairs.distinct_tokens / median_seconds
            row["flops_per_second"] = flops / median_seconds
    return record.new(
        "step-trl" if "plug-in" in peers else "step",
        args.device,
        model=name,
        shape={
            "dtype": dtype_name,
            "pairs": len(pairs),
            "distinct_tokens": pairs.distinct_tokens,
            "response_tokens": pairs.response_tokens,
            "padded_tokens": pairs.padded_tokens,
            "responses_per_prompt": each,
            "lengths": pairs.lengths,
            "prompt_lengths": [len(p) for p in pairs.prompts],
            "checkpointing": setting.checkpointing,
        },
        useful_flops=flops,
        rows=rows,
    )


def measure(setting: Setting, pairs: Pairs, names: list[str], repeat: int) -> list[Row]:
    """A row a trainer; who fails, or disagrees with the plain loop, gets no time."""
    together = torch.device(setting.device).type == "cpu"
    first = Isolated(serve, setting)
    try:
        pairs = pairs.with_reference(first.ask("logps", pairs))
    except Failed as error:
        first.end()
        raise InputError(f"{setting.model}: {error}") from None
    spare: list[Isolated] = [first]
    order = sorted(names, key=lambda name: name != AUTHORS)  # the plain loop sets the measure
    rows: dict[str, Row] = {}
    running: dict[str, Isolated] = {}
    with progress(f"training {setting.model}", len(names) * (1 + repeat), "steps") as advance:
        for name in order:
            rows[name], worker = begin(setting, pairs, name, spare)
            advance()
            if worker is None:
                advance(repeat)
                continue
            running[name] = worker
            if not together:
                take_turns(running, rows, repeat, advance)
        take_turns(running, rows, repeat, advance)
    for worker in spare:
        worker.end()
    agree(rows, TOLERANCE[setting.dtype])
    return [rows[name] for name in names]


def begin(
    setting: Setting, pairs: Pairs, name: str, spare: list[Isolated]
) -> tuple[Row, Isolated | None]:
    """The row of a trainer's first step, and its process; None and why in the row if it failed.

    That step makes AdamW's state. Where memory is short, micro-batches get smaller.
    """
    micro, why = len(pairs), ""
    if setting.device != "cpu":
        micro = min(micro, FIRST_MICRO.get(name, micro))
    while micro >= 1:
        worker = spare.pop() if spare else Isolated(serve, setting)
        row: Row = {"name": name, "micro_pairs": micro}
        try:
            worker.ask("train", name, pairs, micro)
            first = worker.ask("step")
            return {**row, "first": {k: first[k] for k in ("loss", "grad_norm")}}, worker
        except Failed as error:
            worker.end()
            why = str(error)
            if "out of memory" not in why:
                break
            micro //= 2
    return {"name": name, "why": why}, None


def take_turns(
    running: dict[str, Isolated], rows: dict[str, Row], repeat: int, advance: Any
) -> None:
    """Let each that runs take `repeat` steps by turns, add them to its row, and end it."""
    steps: dict[str, list[Row]] = {name: [] for name in running}
    for _ in range(repeat):
        for name, worker in list(running.items()):
            try:
                steps[name].append(worker.ask("step"))
            except Failed as error:
                rows[name] = {"name": name, "why": str(error)}
                running.pop(name).end()
            advance()
    for name, worker in running.items():
        rows[name]["seconds"] = summary([s["seconds"] for s in steps[name]])
        rows[name]["peak"] = max(s["peak"] for s in steps[name])
        worker.end()
    running.clear()


def agree(rows: dict[str, Row], tolerance: float) -> None:
    """Take the time from rows that are not at the first one's loss and norm; the first is plain."""
    known = [row for row in rows.values() if "first" in row]
    if not known:
        return
    base = known[0]
    for row in known:
        for quantity, value in row["first"].items():
            if quantity == "grad_norm" and row["name"] in OTHER_NORM:
                continue
            off = abs(value - base["first"][quantity]) / abs(base["first"][quantity])
            if not off <= tolerance:
                row["why"] = (
                    f"wrong result, not timed: {quantity} {value:.6g}, "
                    f"but {base['first'][quantity]:.6g} by {base['name']}"
                )
                row.pop("seconds", None)
    for row in known:
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
    """A row a trainer, fastest first."""
    timed = sorted(
        (r for r in found["rows"] if "seconds" in r), key=lambda r: r["seconds"]["median"]
    )
    rows = [
        [
            r["name"],
            spread(r["seconds"], "s"),
            f"{r['tokens_per_second']:.0f}",
            gib(r["peak"]),
            f"{r['first']['loss']:.5f}",
            f"{r['first']['grad_norm']:.4g}",
        ]
        for r in timed
    ]
    columns = ["trainer", "s a step, median (quartiles)", "tokens/s", "peak GiB"]
    return [*columns, "first loss", "gradient norm"], rows


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
