"""The operators that the CPU lacks: products with a dtype of their own, flash attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

STAND = "CustomRNGKeyId"  # the key of device.cpp
_LIBRARY: list[torch.library.Library] = []  # what is registered lives as long


def install() -> None:
    """Register them for the stand-in."""
    library = torch.library.Library("aten", "IMPL")
    _LIBRARY.append(library)
    library.impl("mm.dtype", _mm, STAND)
    library.impl("mm.dtype_out", _mm_out, STAND)
    library.impl("bmm.dtype", _mm, STAND)
    library.impl("addmm.dtype", _addmm, STAND)
    library.impl("addmm.dtype_out", _addmm_out, STAND)
    library.impl("_flash_attention_forward", _flash_forward, STAND)
    library.impl("_flash_attention_backward", _flash_backward, STAND)


def _halves(*factors: Tensor) -> None:
    first = factors[0].dtype
    if first not in (torch.bfloat16, torch.float16) or any(x.dtype != first for x in factors):
        raise RuntimeError(f"out_dtype: two factors in halves, not {[x.dtype for x in factors]}")


def _mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    _halves(a, b)
    return (a.float() @ b.float()).to(dtype)


def _mm_out(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return out.copy_(_mm(a, b, dtype))


def _addmm(
    sums: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    _halves(a, b)
    return (sums.float() * beta + (a.float() @ b.float()) * alpha).to(dtype)


def _addmm_out(*given: Any, out: Tensor, **named: Any) -> Tensor:
    return out.copy_(_addmm(*given, **named))


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, bounds: tuple[Tensor, Tensor], causal: bool, left: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor, Tensor]]:
    """Of each sequence: its queries, its keys, q, k, v in float32 by heads, and what is seen."""
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, not {q.dtype}")
    if any(cu.dtype != torch.int32 for cu in bounds):
        raise RuntimeError("cu_seqlens must have dtype int32")
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise RuntimeError(f"head dimension {q.shape[-1]}")
    shared = q.shape[1] // k.shape[1]
    of_q, of_k = (cu.cpu().tolist() for cu in bounds)
    edges = zip(of_q[:-1], of_q[1:], of_k[:-1], of_k[1:], strict=True)
    for a, b, c, d in edges:
        n, m = b - a, d - c
        query = torch.arange(n, device=q.device)[:, None] + m - n
        key = torch.arange(m, device=q.device)
        seen = torch.ones(n, m, dtype=torch.bool, device=q.device)
        if causal:
            seen &= key <= query
        if left >= 0:
            seen &= key >= query - left
        mine = q[a:b].float().transpose(0, 1)
        theirs = (x[c:d].float().repeat_interleave(shared, 1).transpose(0, 1) for x in (k, v))
        yield slice(a, b), slice(c, d), mine, *theirs, seen  # type: ignore[misc]


def _flash_forward(
    q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale=None,
    window_size_left=-1, window_size_right=-1, **named,
):  # type: ignore[no-untyped-def]  # fmt: skip
    scale = scale or q.shape[-1] ** -0.5
    outputs, sums = [], []
    causal = causal or window_size_right == 0
    for _, _, a, b, c, seen in _sequences(q, k, v, (cu_q, cu_k), causal, window_size_left):
        z = (a @ b.mT * scale).masked_fill(~seen, -torch.inf)
        sums.append(z.logsumexp(-1))
        outputs.append((z.softmax(-1) @ c).transpose(0, 1))
    nothing = q.new_empty(0)
    state = q.new_zeros(2, dtype=torch.int64)
    return torch.cat(outputs).to(q.dtype), torch.cat(sums, 1), state, nothing, nothing


def _flash_backward(
    grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, *state, scale=None,
    window_size_left=-1, window_size_right=-1, **named,
):  # type: ignore[no-untyped-def]  # fmt: skip
    scale = scale or q.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    causal = causal or window_size_right == 0
    heads = k.shape[1]
    for i, j, a, b, c, seen in _sequences(q, k, v, (cu_q, cu_k), causal, window_size_left):
        g = grad[i].float().transpose(0, 1)
        p = (a @ b.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1)
        dp = g @ c.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        dq[i] += (ds @ b).transpose(0, 1)
        for total, part in ((dk, ds.mT @ a), (dv, p.mT @ g)):
            total[j] += part.transpose(0, 1).unflatten(1, (heads, -1)).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
