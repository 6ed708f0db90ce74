"""Chunked log-probs with a backward pass that computes each chunk's logits anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from comal_kernels.backend import make_engine
from comal_kernels.head import Head, compute_dtype
from comal_kernels.plan import pieces
from comal_kernels.segment import segment_sum


@dataclass(frozen=True)
class Rows:
    """Which rows are projected, for what, and how they add up."""

    row: Tensor  # (N,) int64 positions among T
    target: Tensor  # (N,) int64
    lengths: Tensor | None  # (S,) int64 rows of each sequence; None: one result per position
    capacity: int  # rows of one chunk of logits
    backend: str


def token_logps(head: Head, hidden: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """hidden (T, H) → log-probs and log-sum-exps (N,): one pass, nothing kept for gradients."""
    dtype, n = compute_dtype(hidden.dtype), rows.row.shape[0]
    engine = make_engine(rows.backend, head, min(rows.capacity, max(1, n)))
    logp = torch.empty(n, dtype=dtype, device=hidden.device)
    lse = torch.empty_like(logp)
    for part in pieces(slice(0, n), engine.logp_rows):
        x = hidden.index_select(0, rows.row[part])
        logp[part], lse[part] = engine.logp(x, rows.target[part])
    return logp, lse


class LinearLogprob(torch.autograd.Function):
    """forward: 1 pass. backward: 1 pass to recompute, 1 for each of dhidden and dweight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, H)
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,)
        head: Head,
        rows: Rows,
    ) -> Tensor:  # (T,) or (S,)
        logp, lse = token_logps(head, hidden, rows)
        ctx.save_for_backward(hidden, weight, bias, lse)
        ctx.head, ctx.rows = head, rows
        if rows.lengths is not None:
            return segment_sum(logp.double(), rows.lengths).to(logp.dtype)
        return logp.new_zeros(hidden.shape[0]).index_copy_(0, rows.row, logp)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # grad (T,) or (S,)
        hidden, weight, bias, lse = ctx.saved_tensors
        rows: Rows = ctx.rows
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        n = rows.row.shape[0]
        if rows.lengths is None:
            coef = grad.index_select(0, rows.row)
        else:
            coef = grad.repeat_interleave(rows.lengths, output_size=n)
        engine = make_engine(
            rows.backend,
            ctx.head,
            min(rows.capacity, max(1, n)),
            need_x=need_x,
            need_weight=need_weight,
            need_bias=need_bias,
        )
        dhidden = torch.zeros_like(hidden) if need_x else None
        for part in pieces(slice(0, n), rows.capacity):
            index = rows.row[part]
            engine.load(hidden.index_select(0, index), rows.target[part], lse[part])
            dx = engine.backward(coef[part])
            if dhidden is not None and dx is not None:
                dhidden.index_copy_(0, index, dx.to(dhidden.dtype))
        dweight, dbias = engine.weight_grads()
        return dhidden, dweight, dbias, None, None
