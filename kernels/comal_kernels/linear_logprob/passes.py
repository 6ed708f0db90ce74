"""Chunked log-probs, and their gradients from each chunk's logits computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comal_kernels.chunks import pieces
from comal_kernels.execution import Execution
from comal_kernels.head import Head, compute_dtype
from comal_kernels.transfer import Ints, to_device

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # of hidden, weight, bias


@dataclass(frozen=True)
class Rows:
    """Which rows are projected, for what, and how they add up."""

    row: Tensor  # (N,) int64 positions among T
    target: Tensor  # (N,) int64
    lengths: Tensor | None  # (S,) int64 rows of each sequence; None: one result per position


def kept_rows(
    target: Ints,  # (T,)
    cu: Ints | None,  # (S + 1,)
    ignore_index: int,
    device: torch.device,
) -> Rows:
    """The rows whose target counts, with tensors on `device`."""
    kept = np.flatnonzero(target != ignore_index)
    lengths = None
    if cu is not None:
        lengths = to_device(np.diff(np.searchsorted(kept, cu)), device)
    return Rows(to_device(kept, device), to_device(target[kept], device), lengths)


def token_logps(
    hidden: Tensor,  # (T, H)
    head: Head,
    rows: Rows,
    execution: Execution,  # resolved
) -> tuple[Tensor, Tensor]:
    """Log-probs and log-sum-exps (N,): one pass, nothing kept for gradients."""
    dtype, n = compute_dtype(hidden.dtype), rows.row.shape[0]
    engine = execution.engine(head, n)
    logp = torch.empty(n, dtype=dtype, device=hidden.device)
    lse = torch.empty_like(logp)
    for part in pieces(slice(0, n), engine.logp_rows):
        x = hidden.index_select(0, rows.row[part])
        logp[part], lse[part] = engine.logp(x, rows.target[part])
    return logp, lse


def token_grads(
    hidden: Tensor,  # (T, H)
    head: Head,
    rows: Rows,
    execution: Execution,  # resolved
    lse: Tensor,  # (N,)
    coef: Tensor,  # (N,) d loss / d logp
    needs: Sequence[bool],  # gradients of hidden, weight, bias
) -> Grads:
    """Gradients of hidden (T, H), weight and bias in their dtypes, None where not needed.

    One pass to recompute the logits, one for each of dhidden and dweight.
    """
    n = rows.row.shape[0]
    engine = execution.engine(head, n, needs)
    dhidden = torch.zeros_like(hidden) if needs[0] else None
    for part in pieces(slice(0, n), engine.capacity):
        index = rows.row[part]
        engine.load(hidden.index_select(0, index), rows.target[part], lse[part])
        dx = engine.backward(coef[part])
        if dhidden is not None and dx is not None:
            dhidden.index_copy_(0, index, dx.to(dhidden.dtype))
    return dhidden, *engine.weight_grads()
