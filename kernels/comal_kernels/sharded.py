"""Heads whose parameters FSDP2 has sharded."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor
from torch.nn import Parameter

T = TypeVar("T", Tensor, Tensor | None)


def whole(x: T) -> T:
    """A DTensor (V, …) gathered from its ranks; its gradient is the ranks' mean, as FSDP2's is.

    Anything else passes through. The gathered copy lives as long as the loss's graph.
    """
    if x is None or type(x) in (Tensor, Parameter):
        return x
    from torch.distributed.tensor import DTensor, Partial, Replicate

    if not isinstance(x, DTensor):
        return x
    means = [p if isinstance(p, Replicate) else Partial("avg") for p in x.placements]
    return x.full_tensor(grad_placements=means)
