"""A model over all ranks: PyTorch's FSDP2, a group of parameters a layer and one for the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from comal_fast.system.ranks import world

R = TypeVar("R")


def shard(model: Any, device: torch.device) -> None:
    """Shard the model's parameters over all ranks, in place; nothing happens on a single one.

    Parameters and activations keep their dtype, gradients are reduced in float32, and summed: the
    loss's weights are shares of the whole step already. Packed 4-bit weights stay whole. device:
    of the ranks; the model may still be without memory.
    """
    if world() == 1 or isinstance(model, FSDPModule):
        return
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "ignored_params": {p for p in model.parameters() if not p.is_floating_point()},
    }
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        fully_shard(layer, **options)
    # embeddings, final norm and head, tied or not: whole from the forward to the backward pass,
    # so that the fused loss sees a plain head
    fully_shard(model, reshard_after_forward=False, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way


def scatter(whole: Any | None, skeleton: Any, device: torch.device) -> None:
    """Give `skeleton`, a model on the meta device, the weights of rank 0's `whole`, sharded.

    One tensor at a time is sent, and a rank keeps its part alone. All ranks call it.
    """
    shard(skeleton, device)
    skeleton.to_empty(device=device)
    weights = {} if whole is None else whole.state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(skeleton, weights, options=options)
    kept = {} if whole is None else dict(whole.named_buffers())
    for name, buffer in skeleton.named_buffers():  # some are computed, and stored nowhere
        if name in kept:
            buffer.copy_(kept[name])
        dist.broadcast(buffer, src=0)


def forward_pass(model: Any, function: Callable[..., R]) -> Callable[..., R]:
    """`function(model, …)` as a forward pass of a model that may be sharded.

    The parameters outside the layers stay whole until the backward pass.
    """
    if world() == 1:
        return partial(function, model)
    name = f"comal_{function.__name__}"
    setattr(model, name, MethodType(function, model))
    register_fsdp_forward_method(model, name)
    return getattr(model, name)


def whole_state(model: Any) -> dict[str, Any]:
    """What is trained, whole and on the CPU; empty on ranks other than 0. All ranks call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)
