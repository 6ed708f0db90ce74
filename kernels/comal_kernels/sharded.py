"""A head's parameters as the operations take them: whole, and in the dtype of the states."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor
from torch.nn import Parameter

T = TypeVar("T", Tensor, Tensor | None)


def whole(x: T, states: Tensor | None = None) -> T:
    """x (V, …) in the dtype of `states`, if given; a DTensor is gathered from its ranks after that.

    Its gradient comes in its own dtype, and is the ranks' mean, as FSDP2's is. Under autocast, and
    under FSDP2's mixed precision, states come in halves and the head is in float32: a product of
    the two is one of halves there too. The copy lives as long as the loss's graph.
    """
    if not isinstance(x, Tensor):  # None, or what the checks refuse
        return x
    if isinstance(states, Tensor) and x.is_floating_point() and states.is_floating_point():
        x = x.to(states.dtype)
    if type(x) in (Tensor, Parameter):
        return x
    from torch.distributed.tensor import DTensor, Partial, Replicate

    if not isinstance(x, DTensor):
        return x
    means = [p if isinstance(p, Replicate) else Partial("avg") for p in x.placements]
    return x.full_tensor(grad_placements=means)
