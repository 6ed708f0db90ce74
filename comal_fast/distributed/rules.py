"""What does not go together with several ranks."""

from __future__ import annotations

from comal_fast.config import Config
from comal_fast.distributed.ranks import world


def check_ranks(config: Config) -> None:
    """Raise ValueError for the first option that several ranks can't keep exactly."""
    if world() == 1:
        return
    training = config.training
    refused = [
        (
            "training.optimizer_state: 8bit",
            training.optimizer_state == "8bit",
            "its scales belong to blocks of one rank's part; use float32",
        ),
        (
            "training.optimizer_offload",
            training.optimizer_offload,
            "the moments are sharded already; leave it out",
        ),
        (
            "model.quantization: nf4",
            config.model.quantization == "nf4",
            "bitsandbytes' packed weights are not sharded; use model.lora on weights of 16 bits",
        ),
        (
            "phases: process",
            config.phases == "process",
            "each rank is a process already; use auto",
        ),
    ]
    for name, given, why in refused:
        if given:
            raise ValueError(f"{name} under torchrun with {world()} ranks: {why}")
