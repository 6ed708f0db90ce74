"""Norms of gradients in float32, whatever the gradients' dtype, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from comal_fast.optim.slices import local
from comal_kernels.sharded import whole


def gradient_norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return () the norm of this rank's part of each gradient, in float32 (or their float64).

    On a CPU torch adds up a tensor's squares in order and loses 0.2 % of a norm over 28 million
    numbers, so rows come first there, and then their norms.
    """
    parts = [local(gradient) for gradient in gradients]
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    if parts[0].device.type == "cpu":
        parts = [torch.linalg.vector_norm(part, dim=-1, dtype=dtype) for part in parts]
    return list(torch._foreach_norm(parts, 2, dtype=dtype))


def total_norm(norms: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return () float64 the norm of all parts of all gradients, the same one on every rank.

    Args:
        norms: () of each gradient, this rank's part.
        like: a parameter, sharded over the ranks if the gradients are.
    """
    squares = torch.stack(list(norms)).double().square().sum()
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import DTensor, Partial

        squares = whole(DTensor.from_local(squares, like.device_mesh, [Partial()]))
    return squares.sqrt()
