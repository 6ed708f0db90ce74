"""train: the prox step, π_{t−1} → π_t."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.config.validate import prox_options
from comal_fast.context import Context
from comal_fast.distributed import checkpoint
from comal_fast.distributed.collective import collective
from comal_fast.distributed.sharding import whole_state
from comal_fast.model.packed import PromptResponse
from comal_fast.phases import generate, judge, logps, pair
from comal_fast.store.artefacts import (
    folder_key,
    make_key,
    read_table,
    table_key,
    write_folder,
)
from comal_fast.system.ranks import is_main, world
from comal_fast.system.terminal import progress
from comal_fast.training.items import Items, make_items
from comal_fast.training.trainer import Diverged, Trainer

__all__ = ["Diverged", "Trainer", "fit", "path", "run"]


def path(context: Context, iteration: int) -> Path:
    """The artefact: π_iteration."""
    return context.folder(iteration) / "model"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/model from the pairs and their cached log-probs."""
    config = context.config
    training = asdict(config.training)
    del training["save_steps"]  # has no part in what comes of it
    wanted = make_key(
        "train",
        context.model_key(iteration - 1),
        table_key(pair.path(context, iteration)),
        table_key(logps.path(context, iteration)),
        [config.algorithm.prox, prox_options(config)],
        training,
        config.model.lora and asdict(config.model.lora),
        config.seed,
    )
    if folder_key(path(context, iteration)) == wanted:
        return
    items, sequences = _load(context, iteration)
    resumed = folder_key(_checkpoint(context, iteration)) == wanted
    fit(context, iteration, items, sequences, wanted, resumed)
    context.discard(_checkpoint(context, iteration))
    context.note("train", iteration)


def _checkpoint(context: Context, iteration: int) -> Path:
    return context.folder(iteration) / "checkpoint"


@collective
def fit(
    context: Context,
    iteration: int,
    items: Items,
    sequences: dict[int, PromptResponse],
    key: str,
    resumed: bool,
) -> None:
    """Train π_{iteration−1} into π_iteration and write it, from its checkpoint where `resumed`."""
    config, save_steps = context.config, context.config.training.save_steps
    metrics = context.metrics("train", iteration)
    model = context.take_model(iteration - 1)
    if world() > 1:  # what a shard is cut from is freed only if nobody keeps it
        context.forget_models()
    trainer = Trainer(config, model, items, sequences, iteration)
    rows: list[dict[str, Any]] = []
    if resumed:
        rows = trainer.restore(_checkpoint(context, iteration))
        metrics.replay(rows)
    description = f"train π_{iteration} ({config.algorithm.prox})"
    with progress(description, trainer.steps, "steps") as advance, trainer:
        advance(trainer.step)
        while trainer.step < trainer.steps:
            rows.append(metrics.log(**trainer.optimiser_step()))
            advance()
            if save_steps and trainer.step % save_steps == 0 and trainer.step < trainer.steps:
                with checkpoint.write_together(_checkpoint(context, iteration), key) as temporary:
                    trainer.save(temporary, rows)
    weights = whole_state(model) if world() > 1 else None
    if is_main():
        with write_folder(path(context, iteration), key) as temporary:
            model.save_pretrained(temporary, state_dict=weights)
            context.tokenizer.save_pretrained(temporary)
    if world() == 1:
        context.put_model(iteration, model)


def _load(context: Context, iteration: int) -> tuple[Items, dict[int, PromptResponse]]:
    """(the items, the sequence of each row that stands in one)."""
    pairs = read_table(pair.path(context, iteration))
    cached = read_table(logps.path(context, iteration))
    samples = read_table(generate.path(context, iteration))
    matrices = judge.read_matrices(context, iteration)
    rejected = pairs["rejected"].to_pylist()
    items = make_items(
        context.config,
        chosen=pairs["chosen"].to_pylist(),
        rejected=None if None in rejected else rejected,
        preference=pairs["preference"].to_numpy(),
        count=pairs["count"].to_numpy(),
        prompt=samples["prompt_id"].to_numpy(),
        win_rate=np.concatenate([judge.win_rates(m) for m in matrices.values()]),
        ref_logp=cached["ref_logp"].to_numpy(),
        last_logp=cached["last_logp"].to_numpy(),
    )
    rows = items.rows()
    return items, dict(zip(rows, logps.prompt_responses(samples, rows), strict=True))
