"""Chunked log-probs, and their gradients from each chunk's logits computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comal_kernels.chunks import Ints, pieces, to_device
from comal_kernels.engines.choose import make_engine, rows_within
from comal_kernels.head import Head, compute_dtype

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # of hidden, weight, bias


@dataclass(frozen=True)
class Rows:
    """Which rows are projected, for what, and how they add up."""

    row: Tensor  # (N,) int64 positions among T
    target: Tensor  # (N,) int64
    lengths: Tensor | None  # (S,) int64 rows of each sequence; None: one result per position
    capacity: int  # rows of one chunk of logits
    backend: str


def kept_rows(
    target: Ints,  # (T,)
    cu: Ints | None,  # (S + 1,)
    *,
    ignore_index: int,
    head: Head,
    workspace: int | None,
    backend: str,
    grad_filter: float | None = None,
) -> Rows:
    """The rows whose target counts."""
    device = head.weight.device
    kept = np.flatnonzero(target != ignore_index)
    lengths = None
    if cu is not None:
        lengths = to_device(np.diff(np.searchsorted(kept, cu)), device)
    return Rows(
        row=to_device(kept, device),
        target=to_device(target[kept], device),
        lengths=lengths,
        capacity=rows_within(head, workspace, backend, grad_filter),
        backend=backend,
    )


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


def token_grads(
    head: Head,
    hidden: Tensor,  # (T, H)
    rows: Rows,
    lse: Tensor,  # (N,)
    coef: Tensor,  # (N,) d loss / d logp
    needs: Sequence[bool],  # gradients of hidden, weight, bias
    grad_filter: float | None = None,
) -> Grads:
    """One pass to recompute the logits, one for each of dhidden and dweight that is needed."""
    need_x, need_weight, need_bias = needs
    n = rows.row.shape[0]
    engine = make_engine(
        rows.backend,
        head,
        min(rows.capacity, max(1, n)),
        need_x=need_x,
        need_weight=need_weight,
        need_bias=need_bias,
        grad_filter=grad_filter,
    )
    dhidden = torch.zeros_like(hidden) if need_x else None
    for part in pieces(slice(0, n), rows.capacity):
        index = rows.row[part]
        engine.load(hidden.index_select(0, index), rows.target[part], lse[part])
        dx = engine.backward(coef[part])
        if dhidden is not None and dx is not None:
            dhidden.index_copy_(0, index, dx.to(dhidden.dtype))
    return dhidden, *engine.weight_grads()
