"""train: the prox step, π_{t−1} → π_t."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.config import Config
from comal_fast.config.algorithm import LABELS, TARGET
from comal_fast.config.options import what
from comal_fast.config.plugins import source_of
from comal_fast.config.validate import prox_options
from comal_fast.context import Context
from comal_fast.distributed import checkpoint
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import summed
from comal_fast.distributed.sharding import whole_state
from comal_fast.game.pair_selection import mean_win_rates
from comal_fast.phases import given
from comal_fast.phases.generate import rows_by_prompt
from comal_fast.phases.judge import read_matrices
from comal_fast.phases.logps import prompt_responses
from comal_fast.store.artefacts import make_key
from comal_fast.store.directory import IterationFolder
from comal_fast.store.files import remove
from comal_fast.system.ranks import is_main, world
from comal_fast.system.signals import Terminated, asked, put_off
from comal_fast.system.terminal import console, progress
from comal_fast.training.items import Items, make_items, reads_rewards, uses_margins
from comal_fast.training.trainer import Diverged, Trainer
from comal_kernels import PROX
from comal_kernels.packing import PromptResponse

_OPTIONS_0_1 = (  # of `training:`, in the key that 0.1 gave
    "learning_rate",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "optimizer_state",
    "stochastic_rounding",
    "optimizer_in_backward",
    "optimizer_offload",
    "num_train_epochs",
    "train_batch_size",
    "max_tokens_per_microbatch",
    "shuffle",
    "gradient_checkpointing",
    "activation_memory",
    "offload_activations",
    "backend",
)


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/model from the pairs and their cached log-probs."""
    folder, (key, older) = context.directory.iteration(iteration), keys(context, iteration)
    if not folder.model.holds(key, older):
        items, sequences = load_items(context, iteration)
        resumed = next((c.path for c in folder.checkpoints() if c.holds(key, older)), None)
        fit(context, iteration, items, sequences, key, resumed)
    for kept in folder.checkpoints():
        kept.discard()
    for path in folder.of_killed():
        remove(path)


def keys(context: Context, iteration: int) -> tuple[str, str]:
    """(the key of π_iteration, the one that 0.1 gave it, which held what changes nothing too)."""
    config, folder = context.config, context.directory.iteration(iteration)
    training = config.training.model_dump(include=set(_OPTIONS_0_1))
    source = source_of(PROX[config.algorithm.prox].phi.__module__)  # of a plugin's loss
    first, second = (
        make_key(
            "train",
            context.policies.key(iteration - 1),
            folder.pairs.key(),
            folder.logps.key(),
            [config.algorithm.prox, _in_key(config), *([source] if source else [])],
            options,
            config.model.lora and what(config.model.lora),
            config.seed,
        )
        for options in (what(config.training), training)
    )
    return first, second


def _in_key(config: Config) -> dict[str, Any]:
    """Return the options that the prox reads, under the names that older versions gave them."""
    options = prox_options(config)
    target, labels = options.pop(TARGET, None), options.get(LABELS)
    if labels is not None and labels != "sampled" and not uses_margins(config):
        del options[LABELS]
        if not reads_rewards(PROX[config.algorithm.prox]):
            options["pairing.soft_labels"] = labels == "soft"
    elif target is not None:
        options[TARGET] = target
    return dict(sorted(options.items()))


@collective
def fit(
    context: Context,
    iteration: int,
    items: Items,
    sequences: dict[int, PromptResponse],
    key: str,
    resumed: Path | None,
) -> None:
    """Train π_{iteration−1} into π_iteration and write it, from the checkpoint `resumed` if any."""
    config, policies = context.config, context.policies
    folder = context.directory.iteration(iteration)
    metrics = context.metrics("train", iteration)
    if is_main():
        folder.log(folder.model).discard()  # of a model that is trained anew
    model = policies.take(iteration - 1)
    if world() > 1:  # whatever else is kept here has no room beside what trains
        policies.forget()
    trainer = Trainer(config, model, items, sequences, iteration)
    if (share := lost_updates(model, config)) > 0.5:
        console.print(
            f"  [yellow]![/] {share:.0%} of the {config.model.dtype} weights are so large that a "
            f"step of training.learning_rate={config.training.learning_rate:g} rounds to nothing; "
            "training.stochastic_rounding=true keeps it on average",
            soft_wrap=True,
        )
    rows: list[dict[str, Any]] = []
    if resumed:
        rows = trainer.restore(resumed)
        metrics.replay(rows)
    description = f"train π_{iteration} ({config.algorithm.prox})"
    with put_off():
        with progress(description, trainer.steps, "steps") as advance, trainer:
            advance.begin(trainer.step)
            saved = time.monotonic()
            while trainer.step < trainer.steps:
                try:
                    rows.append(metrics.log(trainer.optimizer_step()))
                except Diverged as error:
                    raise Diverged(f"{error}; {_kept(trainer, folder, key, rows)}") from None
                advance()
                ending, due = _now(config, trainer.step, saved)
                if (ending or due) and trainer.step < trainer.steps:
                    if is_main():
                        folder.make_room(config.training.keep_checkpoints)
                    with checkpoint.write_together(folder.checkpoint, key) as temporary:
                        trainer.save(temporary, rows)
                    saved = time.monotonic()
                    if ending:
                        raise Terminated(f"a signal, behind step {trainer.step}'s checkpoint")
        weights = whole_state(model) if world() > 1 else None
        if is_main():
            folder.log(folder.model).write({"rows": rows}, key)
            base = policies.key(0) if config.model.lora else None
            with folder.model.write(key, rests_on=base) as temporary:
                model.save_pretrained(temporary, state_dict=weights)
                context.tokenizer.save_pretrained(temporary)
    if world() == 1:
        policies.keep(iteration, model)


def _kept(trainer: Trainer, folder: IterationFolder, key: str, rows: list[dict[str, Any]]) -> str:
    """Keep the step that has no gradient, before which all is well; says how to look at it."""
    if trainer.config.training.optimizer_in_backward:
        return "without training.optimizer_in_backward the step is kept to look at"
    with checkpoint.write_together(folder.failed, key) as temporary:
        trainer.save(temporary, rows)
    return f"`comal-fast replay {folder.failed.path}` shows which tensor and which response"


def _now(config: Config, step: int, saved: float) -> tuple[bool, bool]:
    """(whether the run is to end, whether a checkpoint is due): the same on all ranks."""
    training = config.training
    waited = training.save_minutes and time.monotonic() - saved >= 60 * training.save_minutes
    due = bool(waited) or bool(training.save_steps and step % training.save_steps == 0)
    if world() == 1:
        return asked(), due
    together = summed({"ending": asked(), "due": due and is_main()})
    return together["ending"] > 0, together["due"] > 0


def lost_updates(model: Any, config: Config) -> float:
    """The share of trained weights that an AdamW step, of about the learning rate, leaves alone.

    Rounded to nearest, w changes by half the distance to its neighbours at least; seen on some.
    """
    if config.training.stochastic_rounding:
        return 0.0
    lost: Any = 0  # a tensor from the first weight on: read once
    seen = 0
    for weight in (p.detach() for p in model.parameters() if p.requires_grad):
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        some = local.flatten()[:: max(1, local.numel() // 4096)].abs()
        lost = lost + (some + config.training.learning_rate == some).sum()
        seen += some.numel()
    return int(lost) / max(1, seen)


def load_items(context: Context, iteration: int) -> tuple[Items, dict[int, PromptResponse]]:
    """(the items, the sequence of each row that stands in one)."""
    folder = context.directory.iteration(iteration)
    samples, pairs, cached = folder.samples.read(), folder.pairs.read(), folder.logps.read()
    rejected = pairs["rejected"].to_pylist()
    if context.config.data.pairs is None:
        wins = _win_rates(read_matrices(context, iteration), rows_by_prompt(samples))
    else:
        wins = given.win_rates(pairs, samples.num_rows)
    items = make_items(
        context.config,
        chosen=pairs["chosen"].to_pylist(),
        rejected=None if None in rejected else rejected,
        preference=pairs["preference"].to_numpy(),
        margin=_margins(pairs),
        count=pairs["count"].to_numpy(),
        prompt=samples["prompt_id"].to_numpy(),
        win_rate=wins,
        ref_logp=cached["ref_logp"].to_numpy(),
        last_logp=cached["last_logp"].to_numpy(),
        policy_logp=cached["policy_logp"].to_numpy()
        if "policy_logp" in cached.column_names
        else None,
    )
    rows = items.rows()
    return items, dict(zip(rows, prompt_responses(samples, rows), strict=True))


def _margins(pairs: Any) -> np.ndarray | None:
    """Return (P,) the margins of the pairs; None where they are regressed on their labels.

    Tables of older versions hold no such column.
    """
    if "margin" not in pairs.column_names or pairs["margin"].null_count:
        return None
    result: np.ndarray = pairs["margin"].to_numpy()
    return result


def _win_rates(matrices: dict[int, np.ndarray], rows: dict[int, list[int]]) -> np.ndarray:
    """(N,) P̂(y ≻ π_t) of each row of the samples, by the prompt and sample that it is."""
    result = np.full(sum(map(len, rows.values())), np.nan)
    for number, places in rows.items():
        result[places] = mean_win_rates(matrices[number])
    return result
