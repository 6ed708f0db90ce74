"""The verb `comal-fast replay`: a training step whose gradient was no number, looked at again."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comal_fast.errors import InputError

if TYPE_CHECKING:
    from comal_fast.training.trainer import Trainer

_SHOWN = 5  # of each kind


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `replay` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        description="Run a step again that a run kept because its gradient was NaN or infinite.",
    )
    parser.add_argument("failed", metavar="FOLDER", type=Path, help="RUN/iterations/NNNN/failed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast replay`; returns 0, or raises InputError before anything is loaded."""
    folder = args.failed.resolve()
    if not (folder / "trainer.json").is_file() or not folder.parent.name.isdigit():
        raise InputError(
            f"{args.failed}: no step is kept there; expected RUN/iterations/NNNN/failed"
        )
    from comal_fast.system.terminal import console

    for line in replay(folder.parents[2], int(folder.parent.name), folder):
        console.print(line, soft_wrap=True, markup=False)
    return 0


def replay(run_dir: Path, iteration: int, folder: Path) -> Iterator[str]:
    """What is no number in the step that `folder` holds, a line each, in the order of its pass."""
    from comal_fast.config import load_saved
    from comal_fast.context import Context
    from comal_fast.phases.train import load_items
    from comal_fast.store.directory import RunDirectory
    from comal_fast.training.trainer import Trainer

    saved = load_saved(RunDirectory(run_dir).config)
    context = Context(saved.model_copy(update={"output_dir": str(run_dir)}))
    context.directory.iteration(iteration).failed.verify()
    items, sequences = load_items(context, iteration)
    trainer = Trainer(
        context.config, context.policies.take(iteration - 1), items, sequences, iteration
    )
    trainer.restore(folder)
    yield f"iteration {iteration}, step {trainer.step + 1} of {trainer.steps}"
    found = list(_weights(trainer.model)) + list(_passes(context, trainer))
    yield from found
    if not found:
        yield "every number is finite here: another device or another version may differ"


def _weights(model: Any) -> Iterator[str]:
    names = (n for n, p in model.named_parameters() if not bool(p.detach().isfinite().all()))
    yield from (f"weight {name}: NaN or infinity" for name in islice(names, _SHOWN))


def _passes(context: Any, trainer: Trainer) -> Iterator[str]:
    from comal_fast.model.logps import response_logps
    from comal_fast.oracles.checked import short

    config, (_, batch) = context.config, trainer.schedule[trainer.step]
    decode = context.tokenizer.decode
    for number, micro in enumerate(trainer.passes(batch), start=1):
        cached = trainer.items.cached(micro, trainer.model.device)
        for name, value in cached.items():
            if hasattr(value, "isfinite") and not bool(value.isfinite().all()):
                yield f"pass {number}: {name} holds NaN or infinity before the model runs"
        with trainer, _watched(trainer.model) as seen:
            loss = trainer.backward(micro, batch)
        for name, share in seen[:_SHOWN]:
            yield f"pass {number}: the first output without a number: {name}, {share:.1%} of it"
        if not bool(loss.isfinite()):
            yield f"pass {number}: the loss is {float(loss)}"
        for row in micro.rows:
            sequence = trainer.sequences[row]
            (logp,) = response_logps(
                trainer.model, [sequence], max_tokens=config.training.max_tokens_per_microbatch
            )
            if not math.isfinite(logp):
                texts = [decode(ids) for ids in (sequence.response_ids, sequence.prompt_ids)]
                yield (
                    f"pass {number}: row {row} of samples.parquet: log-prob {logp}, response "
                    f"{short(texts[0])} to {short(texts[1])}"
                )
        bad = [
            name
            for name, p in trainer.model.named_parameters()
            if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        for name in bad[:_SHOWN]:
            yield f"pass {number}: gradient of {name}: NaN or infinity"
        trainer.model.zero_grad(set_to_none=True)


@contextmanager
def _watched(model: Any) -> Iterator[list[tuple[str, float]]]:
    """Yield what will list the first modules, by their end, whose output is not finite."""
    import torch

    seen: list[tuple[str, float]] = []

    def look(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not seen and isinstance(first, torch.Tensor) and first.is_floating_point():
                share = float((~first.isfinite()).float().mean())
                if share:
                    seen.append((name, share))

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
