"""On every rank: the optimiser steps of each case, from one iteration's artefacts.

steps_driver.py CONFIG OUT.pt    CASE and its overrides are in CASES
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from comal_fast.system.ranks import is_main

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
    "8bit": ["training.optimizer_state=8bit"],
    "8bit tied": ["training.optimizer_state=8bit"],
    "offload": ["training.optimizer_offload=true"],
    "8bit offload in backward": [
        "training.optimizer_state=8bit",
        "training.optimizer_offload=true",
        "training.optimizer_in_backward=true",
        "training.max_grad_norm=0",
        "training.max_tokens_per_microbatch=1",
    ],
    "nf4": ["model.lora={r: 4}", "model.quantization=nf4"],
    "loaded": [],
    "loaded lora": ["model.lora={r: 4}"],
    "loaded bfloat16": ["model.lora={r: 4}", "model.dtype=bfloat16"],
}
if find_spec("bitsandbytes") is None:  # a CUDA machine may lack it
    CASES = {name: case for name, case in CASES.items() if not {"8bit", "nf4"} & {*name.split()}}
LOADED = {"lora", "nf4", "loaded", "loaded lora", "loaded bfloat16"}  # by the run's own policies
STEPS = 4


def start(case: str) -> Any:
    """The model that a case begins with."""
    from tiny import tiny_model

    sizes = {}
    if case.startswith("8bit"):  # rows of a quarter of a block, or of whole ones, dealt unevenly
        sizes = {"hidden_size": 256 if "tied" in case else 64, "intermediate_size": 256}
    return tiny_model(tie_word_embeddings="tied" in case, **sizes)


def take(context: Any) -> Any:
    """π_0 to train; a rank other than 0 fails where it reads weights that are to be shared out."""
    import transformers

    if is_main() or context.config.model.quantization != "none":
        return context.policies.take(0)
    with mock.patch.object(transformers.AutoModelForCausalLM, "from_pretrained", None):
        model = context.policies.take(0)
    check_share(model)
    return model


def check_share(model: Any) -> None:
    """Each of two ranks holds half of every weight, in memory of its own."""
    for name, x in model.named_parameters():
        half = (x.shape[0] + 1) // 2 * (x.numel() // x.shape[0]) * x.element_size()
        assert x.to_local().untyped_storage().nbytes() <= half, name


Weights = dict[str, torch.Tensor]


def train(case: str, config_file: Path) -> tuple[Weights, Weights, list[dict[str, Any]]]:
    """(what trains before and, on rank 0, after STEPS steps; their metrics rows)."""
    from comal_fast.config import load_config
    from comal_fast.context import Context
    from comal_fast.distributed.sharding import whole_state
    from comal_fast.phases import train

    config = load_config(config_file, CASES[case])
    context = Context(config)
    model = take(context) if case in LOADED else start(case)
    context.policies.forget()
    before = {name: x.clone() for name, x in whole_state(model).items()}
    trainer = train.Trainer(config, model, *train.load_items(context, 1), 1)
    with trainer:
        rows = [trainer.optimizer_step() for _ in range(STEPS)]
    return before, whole_state(model), rows


def main() -> int:
    from comal_fast.distributed.group import run_rank

    config, out = map(Path, sys.argv[1:])

    def work() -> int:
        results = {case: train(case, config) for case in CASES}
        if is_main():
            torch.save(results, out)
        return 0

    return run_rank(work)


if __name__ == "__main__":
    sys.exit(main())
