"""A parameter, its gradient and its state a slice at a time, whatever their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

SLICE = 1 << 23  # elements of a parameter: bounds the memory of float32 copies and of host state


def slices(tensor: Tensor, per: int = 1) -> tuple[Tensor, ...]:
    """Flat parts in order, each of SLICE elements of the parameter; `per` of them to one entry.

    Views: the tensor is contiguous, as parameters are, and so gradients that autograd makes.
    """
    return local(tensor).view(-1).split(SLICE // per)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parts(tensor: Tensor) -> int:
    """Over how many ranks the tensor is sharded."""
    return int(tensor.device_mesh.size()) if hasattr(tensor, "device_mesh") else 1


def zeros_beside(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of that shape in float32, sharded over the first dimension where the tensor is."""
    if not hasattr(tensor, "device_mesh"):
        return torch.zeros(shape, device=tensor.device)
    from torch.distributed.tensor import DTensor, zeros

    assert isinstance(tensor, DTensor)
    return zeros(shape, device_mesh=tensor.device_mesh, placements=tensor.placements)
