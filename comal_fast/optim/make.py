"""Options of `training:` → the optimiser that they mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch

from comal_fast.config.schema import TrainingConfig
from comal_fast.errors import InputError
from comal_fast.optim.adamw import AdamW
from comal_fast.optim.stepper import BackwardStepper, Stepper
from comal_kernels.execution import triton_installed


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: TrainingConfig) -> Stepper:
    """torch's fused AdamW unless an option asks for what it has not.

    Raises InputError where the package that an option needs is not installed.
    """
    trained = list(parameters)
    check_installed(config, trained[0].device)
    rate, decay = config.learning_rate, config.weight_decay
    ours = config.optimizer_in_backward or config.optimizer_offload or config.stochastic_rounding
    if not ours and config.optimizer_state == "model":
        plain = torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)
        return Stepper(plain, config.max_grad_norm)
    inner = AdamW(
        trained,
        lr=rate,
        weight_decay=decay,
        state=config.optimizer_state,
        stochastic_rounding=config.stochastic_rounding,
        offload=config.optimizer_offload,
    )
    if config.optimizer_in_backward:
        return BackwardStepper(inner)
    return Stepper(inner, config.max_grad_norm)


def check_installed(config: TrainingConfig, device: torch.device) -> None:
    """Raise InputError where a package that `training.optimizer_state` needs is not installed.

    8-bit moments need Triton on a GPU, and bitsandbytes on a CPU.
    """
    if config.optimizer_state != "8bit":
        return
    if device.type == "cuda" and not triton_installed():
        raise InputError(
            "training.optimizer_state: 8bit needs the package triton on a GPU; pip install triton"
        )
    if device.type != "cuda" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "training.optimizer_state: 8bit needs the package bitsandbytes on a CPU; "
            "pip install 'comal-fast[8bit]'"
        )
