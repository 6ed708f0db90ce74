"""Peak memory of training steps, predicted by `comal_fast.plan` and measured.

On a CPU every allocation and release of torch's allocator during a step (its profiler's events), on
a GPU the allocator's own mark. Libraries' own memory is in neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import options, record
from bench.bench import Bench
from bench.models import SMOLLM2
from bench.record import Record, Row
from bench.render import terminal
from bench.render.formats import Rows, device_text, mib
from bench.render.markdown import section
from bench.trainers.ours import paired
from comal_fast.config.algorithm import DpoConfig
from comal_fast.config.schema import Config, ModelConfig, TrainingConfig
from comal_fast.plan import memory
from comal_fast.plan.modes import mode_of
from comal_fast.plan.search import budgeted_layers
from comal_fast.plan.shapes import KNOWN, Shape
from comal_fast.system.peak import bytes_in_use, peak_bytes, start_peak
from comal_fast.system.terminal import progress
from comal_fast.training.trainer import Trainer
from comal_kernels.packing import PromptResponse

SIZES = {
    "small": Shape(4, 512, 1408, 8, 2, 64, 8192, False),
    "wide": Shape(6, 768, 2048, 12, 4, 64, 16384, True),
    SMOLLM2: KNOWN[SMOLLM2],
}
MODES: dict[str, dict[str, Any]] = {  # options of `training:`
    "plain": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "activation_memory": {"activation_memory": "half"},  # of what the layers keep
    "optimizer_in_backward": {
        "gradient_checkpointing": True,
        "optimizer_in_backward": True,
        "max_grad_norm": 0.0,
    },
}


@dataclass(frozen=True)
class Case:
    """Pairs of responses of one length, in so many packed passes."""

    size: str
    mode: str
    pairs: int = 8
    prompt: int = 32
    response: int = 96
    passes: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a pass: every prompt once, and all but the last token of each response."""
        return self.pairs // self.passes * (self.prompt + 2 * (self.response - 1))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `peak`."""
    options.add(parser, "device", "dtype")
    parser.add_argument("--model", nargs="+", choices=tuple(SIZES), default=["small", "wide"])


def run(args: argparse.Namespace) -> Record:
    """The peaks of each size in each mode, in one pass and in two."""
    rows: list[Row] = []
    found = record.new("peak", args.device, rows=rows)  # tells the threads that there are
    torch.set_num_threads(1)  # nothing is timed
    cases = [Case(s, m, passes=n) for s in args.model for m in MODES for n in (1, 2)]
    with progress("peaks of training steps", len(cases), "steps") as advance:
        for case in cases:
            rows.append(measure(case, options.dtype(args), args.device))
            advance()
    return found


def measure(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    """A row: predicted and measured bytes at the peak of the second step."""
    shape, cuda = SIZES[case.size], device.type == "cuda"
    config = _config(case, shape, dtype, cuda)
    mode = mode_of(config, shape.layers)
    if config.training.activation_memory:
        count = budgeted_layers(config, shape, case.tokens, cuda)
        mode = mode_of(config, shape.layers, count)
    batch = memory.LargestPass(
        case.tokens, 2 * case.pairs // case.passes * case.response, case.passes == 1
    )
    predicted = memory.peak(memory.training(shape, mode, batch, cuda))
    before = predicted.parts["weights"] + predicted.parts["optimizer state"]
    step = _trainer_step(case, config, shape, dtype, device)
    return {
        "name": case.mode,
        "model": case.size,
        "tokens": case.tokens,
        "passes": case.passes,
        "recomputed": mode.recomputed,
        "moment": predicted.moment,
        "parts": predicted.parts,
        "predicted": predicted.bytes,
        "measured": before + _allocated(step, device),
    }


def _config(case: Case, shape: Shape, dtype: torch.dtype, cuda: bool) -> Config:
    def make(**training: Any) -> Config:
        return Config(
            model=ModelConfig(name_or_path="", dtype=str(dtype).removeprefix("torch.")),  # type: ignore[arg-type]
            algorithm=DpoConfig(),
            training=TrainingConfig(
                train_batch_size=case.pairs, max_tokens_per_microbatch=case.tokens, **training
            ),
        )

    chosen = dict(MODES[case.mode])
    if chosen.get("activation_memory") == "half":
        each = memory.layer_cost(shape, mode_of(make(), shape.layers), cuda)
        kept = each.layer * shape.layers * case.tokens
        chosen["activation_memory"] = f"{kept / 2 / 2**20:.3f}MiB"
    return make(**chosen)


def _trainer_step(
    case: Case, config: Config, shape: Shape, dtype: torch.dtype, device: torch.device
) -> Callable[[], Any]:
    """What takes the trainer's second step: the first made the moments."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    n = case.pairs
    sequences = {
        i: PromptResponse([1 + i % n] * case.prompt, [2] * case.response) for i in range(2 * n)
    }
    items = paired(config, [0.0] * (2 * n))
    trainer = Trainer(config, model, items, sequences, iteration=1)
    trainer.__enter__()
    trainer.optimizer_step()
    return trainer.optimizer_step


def _allocated(job: Callable[[], Any], device: torch.device) -> float:
    """Most bytes that `job` holds at once, beyond what was held before."""
    if device.type == "cuda":
        before = bytes_in_use(device)
        start_peak(device)
        job()
        return peak_bytes(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        job()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, size in changes:
        now += size
        most = max(most, now)
    return most


def show(found: Record) -> None:
    """Print predicted and measured peaks."""
    terminal.table(f"Peak memory of a step; {device_text(found)}", peak_rows(found))


def markdown(found: Record, tokens: int) -> str:
    """Predicted and measured peaks as a section of a document."""
    return section(found, peak_rows(found))


def peak_rows(found: Record) -> Rows:
    """A row a model, mode and number of passes: predicted against measured."""
    rows = [
        [
            f"{r['model']}, {r['name']}",
            f"{r['recomputed']}",
            f"{r['passes']} × {r['tokens']}",
            r["moment"],
            mib(r["predicted"]),
            mib(r["measured"]),
            f"{r['predicted'] / r['measured'] - 1:+.1%}",
        ]
        for r in found["rows"]
    ]
    columns = ["model, mode", "layers recomputed", "passes × tokens", "peak at"]
    return [*columns, "predicted MiB", "measured MiB", "error"], rows


BENCH = Bench(
    verb="peak",
    help="peak memory of a step, predicted and measured",
    add_options=add_options,
    run=run,
    records=("peak",),
    show=show,
    markdown=markdown,
)
