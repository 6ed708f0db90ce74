"""Rows by index, where one row may be taken several times: its gradients add up in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(x: Tensor, index: Tensor, in_order: bool = True) -> Tensor:
    """Return the rows of x (T, …) at index (N,) int64, differentiable once in x.

    A prompt's last state predicts the first token of each of its K responses, so K gradients meet
    there. On CUDA, torch's own backward pass adds them by atomics: in x's dtype, in no fixed order.
    Here they are summed in float32, in the order of `index`, and rounded once.

    in_order: False lets CUDA add them by atomics in float32, unless torch is deterministic. That
        spares sorting the index, which counts where a layer gathers its keys.
    """
    rows: Tensor = _Gather.apply(x, index, in_order)
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, in_order: bool) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows, ctx.in_order = x.shape[0], in_order
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:], dtype=dtype)
        if total.is_cuda and ctx.in_order:  # sorts the index; index_add_ would use atomics there
            total.index_put_((index,), gradient.to(dtype), accumulate=True)
        else:  # one row after the other; index_put_ would use atomics here
            total.index_add_(0, index, gradient.to(dtype))
        return total.to(gradient.dtype), None, None
