"""Whether a run fits its GPU, from its configuration alone, before anything is loaded."""

from __future__ import annotations

import shlex
from typing import Any

import torch

from comal_fast.config import Config
from comal_fast.config.sizes import gib
from comal_fast.errors import InputError
from comal_fast.model.activations import layers_of
from comal_fast.plan import modes
from comal_fast.plan.machines import MACHINES, nearest
from comal_fast.plan.memory import LargestPass
from comal_fast.plan.search import (
    Fit,
    Workload,
    assess,
    budgeted_layers,
    changes,
    choose,
    configured,
    search,
)
from comal_fast.plan.shapes import Unplanned, read_shape, shape_of
from comal_fast.system.ranks import world
from comal_fast.system.terminal import console


def check_device(config: Config, device: torch.device) -> None:
    """Run `check_fits` on a CUDA device. A model that can't be counted is said to be unchecked."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        check_fits(config, total, world())
    except Unplanned as error:
        console.print(f"  memory not estimated: {error}")


def check_fits(config: Config, memory_bytes: float, ranks: int = 1) -> None:
    """Raise InputError, one line, where a phase's estimate exceeds the device's memory.

    It names the estimate by part and the nearest mode that fits. `ranks`: devices that share out
    what they can (`memory.SHARED`).
    """
    shape, work = read_shape(config.model), Workload.of(config)
    machine = MACHINES[nearest(memory_bytes)]
    mode = configured(config, shape, memory_bytes)
    phases = assess(shape, mode, work, machine, ranks).phases
    name, worst = max(phases.items(), key=lambda item: item[1].bytes)
    if worst.bytes <= memory_bytes:
        return
    held = ", ".join(f"{part} {gib(size)}" for part, size in worst.parts.items() if size > 2**27)
    fits = search(shape, work, machine, memory_bytes)
    nearest_one = choose(fits, memory_bytes)
    raise InputError(
        f"{config.model.name_or_path} does not fit: {name} needs {gib(worst.bytes)} GiB ({held}) "
        f"and the GPU has {gib(memory_bytes)} GiB; {_advice(nearest_one, shape.layers, work)}"
    )


def _advice(fit: Fit | None, layers: int, work: Workload) -> str:
    if fit is None:
        return "no mode of training fits such a GPU"
    wanted = modes.options(fit.mode, layers) | changes(fit, work)
    text = shlex.join(f"{name}={_written(value)}" for name, value in wanted.items())
    return f"the nearest mode that fits ({gib(fit.bytes)} GiB) is {fit.mode.name}: {text}"


def _written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def recomputed_layers(model: Any, config: Config, tokens: int, alone: bool = False) -> int:
    """Return how many layers run again in the backward pass, under `training:`.

    Args:
        model: The model that trains, on its device.
        config: The run's configuration.
        tokens: Of the largest packed pass.
        alone: Every step is a single pass, so that no gradients of earlier passes are held.

    Raises:
        InputError: `activation_memory` is `auto` and the model is not on a CUDA device.
    """
    training = config.training
    if training.activation_memory is None:
        return len(layers_of(model)) if training.gradient_checkpointing else 0
    shape, cuda = shape_of(model.config), model.device.type == "cuda"
    if training.activation_memory != "auto":
        return budgeted_layers(config, shape, tokens, cuda)
    if not cuda:
        raise InputError("training.activation_memory: auto needs a GPU; give a size, such as 8GiB")
    total = torch.cuda.get_device_properties(model.device).total_memory
    return configured(config, shape, total, LargestPass(tokens, tokens, alone)).recomputed
