"""Matrix products of half precision factors with float32 results."""

from __future__ import annotations

import torch
from torch import Tensor


def project(x: Tensor, weight: Tensor, out: Tensor) -> None:  # (n, H), (V, H) → out (n, V) float32
    """out = x Wᵀ, never rounded to the factors' dtype."""
    if x.dtype == out.dtype:
        torch.mm(x, weight.t(), out=out)
    elif x.is_cuda:
        torch.ops.aten.mm.dtype_out(x, weight.t(), out.dtype, out=out)
    else:
        torch.mm(x.to(out.dtype), weight.t().to(out.dtype), out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:  # total (V, H) float32 += a b
    """total += a b with a (V, n), b (n, H): no rounding between chunks."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def surviving(grad: Tensor, least: float) -> Tensor:  # (n, V) → (K,) int64
    """The columns with an entry of size `least` at least."""
    return (grad.amax(0).maximum(grad.amin(0).neg()) >= least).nonzero()[:, 0]


def back(grad: Tensor, weight: Tensor) -> Tensor:  # (n, V), (V, H) → (n, H)
    """grad W in grad's dtype, summed in float32 whatever the device."""
    if grad.is_cuda or grad.dtype == torch.float32:
        return torch.mm(grad, weight)
    return torch.mm(grad.float(), weight.float()).to(grad.dtype)
