"""Matrix products of half precision factors with float32 results."""

from __future__ import annotations

import torch
from torch import Tensor


def project(x: Tensor, weight: Tensor, out: Tensor) -> None:  # (n, H), (V, H) → out (n, V) float32
    """Write x Wᵀ to `out`, never rounded to the factors' dtype."""
    if x.dtype == out.dtype:
        torch.mm(x, weight.t(), out=out)
    elif x.is_cuda:
        torch.ops.aten.mm.dtype_out(x, weight.t(), out.dtype, out=out)
    else:
        torch.mm(x.to(out.dtype), weight.t().to(out.dtype), out=out)


def accumulate(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total (V, H) float32 with a (V, n) b (n, H) added in place, or a b: never rounded between."""
    dtype = torch.float32
    if not a.is_cuda or a.dtype == dtype:
        a, b = a.to(dtype), b.to(dtype)
        return torch.mm(a, b) if total is None else total.addmm_(a, b)
    if total is None:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.ops.aten.addmm.dtype_out(total, a, b, dtype, out=total)


def surviving(grad: Tensor, least: float) -> Tensor:
    """Indices (K,) int64 of the columns of grad (n, V) with an entry of size `least` at least."""
    return (grad.amax(0).maximum(grad.amin(0).neg()) >= least).nonzero()[:, 0]


def back(grad: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """grad (n, V) W (V, H): (n, H) in `dtype`, by default grad's; summed in float32 everywhere."""
    dtype = grad.dtype if dtype is None else dtype
    if grad.dtype == torch.float32 or not grad.is_cuda:
        return torch.mm(grad.float(), weight.float()).to(dtype)
    return (
        torch.mm(grad, weight) if dtype == grad.dtype else torch.mm(grad, weight, out_dtype=dtype)
    )
