"""This library's own trainer: packed responses, prox_loss, AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bench.trainers.base import LEARNING_RATE, MAX_GRAD_NORM, Task, Turn
from comal_fast.config.algorithm import DpoConfig
from comal_fast.config.schema import Config, LoraConfig, ModelConfig, TrainingConfig
from comal_fast.model.adapters import add_adapter
from comal_fast.system.allocator import keep_freed_memory
from comal_fast.training.items import Items, make_items
from comal_fast.training.trainer import Trainer
from comal_kernels.packing import PromptResponse

ENDLESS = 300  # epochs; nobody waits for the last
CAP = 24 << 30  # bytes of a small GPU
LEAN: dict[str, Any] = {
    "optimizer_state": "8bit",
    "optimizer_in_backward": True,
    "max_grad_norm": 0.0,
}
LEANEST = LEAN | {"optimizer_offload": True, "offload_activations": True}


class Unshared(PromptResponse):
    """Its prompt is like no other's, so it is run again for every response."""

    @property
    def prompt(self) -> int:
        return id(self)


def train_unshared(task: Task, turn: Turn) -> None:
    """Take steps as `train`, prompts repeated."""
    train(task, turn, Unshared)


def train_lean(task: Task, turn: Turn) -> None:
    """Take steps inside the backward pass, with 8-bit moments; gradients are not clipped."""
    train(task, turn, **LEAN)


def train_leanest(task: Task, turn: Turn) -> None:
    """As `train_lean`, moments and layers' inputs on the host; a GPU's memory is cut to CAP."""
    device = task.model.device
    if device.type != "cuda":
        train(task, turn, **LEANEST)
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total), device)
    try:
        train(task, turn, **LEANEST)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def train_lora(task: Task, turn: Turn) -> None:
    """Take steps of adapters alone, as `model.lora` trains them; the model itself stays."""
    options = ModelConfig(name_or_path="", lora=LoraConfig(r=16))
    train(dataclasses.replace(task, model=add_adapter(task.model, options, seed=0)), turn)


def train(
    task: Task, turn: Turn, kind: type[PromptResponse] = PromptResponse, **training: Any
) -> None:
    """Take steps by comal_fast.training.trainer.Trainer, as the `train` phase drives it."""
    cuda = task.model.device.type == "cuda"
    if not cuda:
        keep_freed_memory()  # as every run on a CPU does
    pairs = task.pairs
    count = len(pairs)
    sequences = {i: kind(p, r) for i, (p, r) in enumerate(pairs.sequences)}
    longest = sorted((len(s) for s in sequences.values()), reverse=True)
    settings: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "warmup_ratio": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "num_train_epochs": ENDLESS,
        "train_batch_size": count,
        "max_tokens_per_microbatch": sum(longest[: 2 * task.mode.micro_pairs]),
        "gradient_checkpointing": task.mode.recompute == "all",
        "activation_memory": "auto" if cuda and task.mode.recompute == "auto" else None,
        "stochastic_rounding": bool(training) and task.model.dtype is torch.bfloat16,
    }
    config = Config(
        model=ModelConfig(name_or_path=""),
        algorithm=DpoConfig(beta=pairs.beta),
        training=TrainingConfig(**settings | training),
    )
    items = paired(config, [*pairs.ref_chosen, *pairs.ref_rejected])
    with Trainer(config, task.model, items, sequences, iteration=1) as trainer:
        while True:
            turn.wait()
            row = trainer.optimizer_step()
            turn.done(row["loss"], row["grad_norm"])


def paired(config: Config, ref_logp: list[float]) -> Items:
    """Items: row i chosen over row n + i, all of them distinct; ref_logp (2n,) of either side."""
    n = len(ref_logp) // 2
    return make_items(
        config,
        chosen=list(range(n)),
        rejected=list(range(n, 2 * n)),
        preference=[1.0] * n,
        count=[1] * n,
        prompt=list(range(n)) * 2,
        win_rate=[0.5] * (2 * n),
        ref_logp=ref_logp,
        last_logp=ref_logp,
    )
