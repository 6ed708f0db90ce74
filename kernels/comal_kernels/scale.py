"""A gradient times a factor that only the device knows, in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.execution import TRITON_DTYPES, interpreted, triton_installed


@torch.library.custom_op("comal_kernels::scaled", mutates_args=())
def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x times factor (), which is never rounded to x's dtype."""
    fits = x.dtype in TRITON_DTYPES and x.is_contiguous() and x.numel() > 0
    if fits and (x.is_cuda or interpreted()) and triton_installed():
        from comal_kernels.engines.triton.launch import scale

        return scale(x, factor, x.dtype)
    if x.is_cuda:
        return x * factor.to(x.dtype)
    return x * factor.item()  # a number of Python's is not rounded either


@scaled.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)
