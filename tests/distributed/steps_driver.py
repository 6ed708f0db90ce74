"""On every rank: the optimiser steps of each case, from one iteration's artefacts.

steps_driver.py CONFIG OUT.pt    CASE and its overrides are in CASES
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

CASES: dict[str, list[str]] = {
    "plain": [],
    "tied": [],  # embeddings and head: one parameter
    "clipped": ["training.max_grad_norm=100"],
    "unclipped": ["training.max_grad_norm=0"],
    "recomputed": ["training.gradient_checkpointing=true"],
    "a pass each": ["training.max_tokens_per_microbatch=100000"],
    "a pair a pass": ["training.max_tokens_per_microbatch=1"],
    "fewer prompts than ranks": ["training.train_batch_size=1"],
    "float32 moments": ["training.optimizer_state=float32"],
    "lora": ["model.lora={r: 4}"],
    "in backward": ["training.optimizer_in_backward=true", "training.max_grad_norm=0"],
}
STEPS = 4


def start(case: str) -> Any:
    """The model that a case begins with."""
    from tiny import tiny_model

    model = tiny_model(tie_word_embeddings=case == "tied")
    if case != "adapters":
        return model
    from comal_fast.config.schema import LoraConfig, ModelConfig
    from comal_fast.model.adapters import add_adapter, freeze

    lora = LoraConfig(r=4)
    return add_adapter(freeze(model, lora), ModelConfig(name_or_path="tiny", lora=lora), seed=0)


Weights = dict[str, torch.Tensor]


def train(case: str, config_file: Path) -> tuple[Weights, Weights, list[dict[str, Any]]]:
    """(what trains before and, on rank 0, after STEPS steps; their metrics rows)."""
    from comal_fast.config import load_config
    from comal_fast.context import Context
    from comal_fast.distributed.sharding import whole_state
    from comal_fast.phases import train

    config = load_config(config_file, CASES[case])
    context = Context(config)
    model = context.policies.take(0) if case == "lora" else start(case)
    if case == "lora":
        context.policies.forget()
    before = {name: x.clone() for name, x in whole_state(model).items()}
    trainer = train.Trainer(config, model, *train.load_items(context, 1), 1)
    with trainer:
        rows = [trainer.optimizer_step() for _ in range(STEPS)]
    return before, whole_state(model), rows


def main() -> int:
    from comal_fast.distributed.group import run_rank
    from comal_fast.system.ranks import is_main

    config, out = map(Path, sys.argv[1:])

    def work() -> int:
        results = {case: train(case, config) for case in CASES}
        if is_main():
            torch.save(results, out)
        return 0

    return run_rank(work)


if __name__ == "__main__":
    sys.exit(main())
