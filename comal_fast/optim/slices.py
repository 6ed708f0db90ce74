"""A parameter, its gradient and its state a slice at a time, whatever their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

SLICE = 1 << 23  # elements of a parameter: bounds the memory of float32 copies and of host state


def slices(tensor: Tensor, per: int = 1, size: int | None = None) -> tuple[Tensor, ...]:
    """Return flat parts in order, each of `size` elements of the parameter (by default SLICE).

    Views: the tensor is contiguous, as parameters are, and so gradients that autograd makes.

    Args:
        tensor: a parameter, or what belongs to one; of a sharded one this rank's part is split.
        per: elements of the parameter to one entry of the tensor.
        size: a multiple of `per`.
    """
    return local(tensor).view(-1).split((SLICE if size is None else size) // per)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def parts(tensor: Tensor) -> int:
    """Over how many ranks the tensor is sharded."""
    return int(tensor.device_mesh.size()) if hasattr(tensor, "device_mesh") else 1


def first_element(tensor: Tensor) -> int:
    """Return the position of this rank's first element in the whole tensor.

    Ranks share out the first dimension, as torch.chunk does.
    """
    if not hasattr(tensor, "device_mesh"):
        return 0
    rows = -(-tensor.shape[0] // parts(tensor))
    return int(tensor.device_mesh.get_local_rank()) * rows * tensor[0].numel()


def zeros_beside(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of that shape in float32, sharded over the first dimension where the tensor is."""
    if not hasattr(tensor, "device_mesh"):
        return torch.zeros(shape, device=tensor.device)
    from torch.distributed.tensor import DTensor, zeros

    assert isinstance(tensor, DTensor)
    return zeros(shape, device_mesh=tensor.device_mesh, placements=tensor.placements)
