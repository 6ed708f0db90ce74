"""A parameter, its gradient and its state a slice at a time, whatever their shapes."""

from __future__ import annotations

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
