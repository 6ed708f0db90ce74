"""One pass over the pairs' chunks: log-probs, losses and gradients together.

At most 3 products with the head (4 for a component longer than the workspace), 1 without gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comal_kernels.chunks import Chunk, Plan, pieces
from comal_kernels.engines.base import Engine
from comal_kernels.execution import Execution
from comal_kernels.head import Head, compute_dtype
from comal_kernels.prox_loss.step import ProxStep
from comal_kernels.segment import segment_sum
from comal_kernels.transfer import to_devices


@dataclass(frozen=True)
class Work:
    """A prox loss, ready to run."""

    head: Head
    execution: Execution  # resolved
    plan: Plan
    step: Callable[[], ProxStep]  # made once the device has the first chunk's product to do
    needs: Sequence[bool]  # gradients of hidden, weight, bias
    ref: tuple[Head, Tensor] | None = None  # the reference's head and states (T, H'), if live
    loss_scale: float = 1.0  # of the gradients


class ProxPass:
    """Runs the chunks: log-probs, losses, coefficients and, where needed, gradients."""

    def __init__(self, work: Work, hidden: Tensor) -> None:
        self.work, self.hidden = work, hidden
        self.engine: Engine = work.execution.engine(work.head, len(work.plan.row), work.needs)
        self.ref_engine = None if work.ref is None else self.engine.reader(work.ref[0])
        arrays = (work.plan.row, work.plan.target, work.plan.seq_rows)  # (N,), (N,), (S,)
        self.row, self.target, self.lengths = to_devices(arrays, hidden.device)
        self.dhidden = torch.zeros_like(hidden) if work.needs[0] else None

    @functools.cached_property
    def step(self) -> ProxStep:
        return self.work.step()

    def run(self) -> None:
        for chunk in self.work.plan.chunks:
            self._chunk(chunk)

    def _chunk(self, chunk: Chunk) -> None:
        rows, lengths = chunk.rows, self.lengths[chunk.seqs]
        n = rows.stop - rows.start
        grad = any(self.work.needs) and chunk.pairs.stop > chunk.pairs.start and n > 0
        held = grad and chunk.whole
        if self.work.ref is not None and self.ref_engine is not None:
            # first, since both projections use the same memory
            ref_logp, _ = self._logp(rows, self.ref_engine, self.work.ref[1])
            self.step.refer(chunk, segment_sum(ref_logp.double(), lengths))
        if held:
            logp, lse = self._load(rows), None
        else:
            logp, lse = self._logp(rows, self.engine, self.hidden)
        seq_logp = segment_sum(logp.double(), lengths)
        coef = self.step.run(chunk, seq_logp)
        if not grad:
            return
        coef = (self.work.loss_scale * coef).repeat_interleave(lengths, output_size=n)
        if held:
            self._backward(rows, coef)
            return
        for part in pieces(rows, self.engine.capacity):  # too long to hold: a second projection
            local = slice(part.start - rows.start, part.stop - rows.start)
            self._load(part, None if lse is None else lse[local])
            self._backward(part, coef[local])

    def _load(self, rows: slice, lse: Tensor | None = None) -> Tensor:
        """Hold the rows' logits; returns log-probs (n,), or nothing, (0,), where lse is known."""
        x = self.hidden.index_select(0, self.row[rows])
        logp = self.engine.load(x, self.target[rows], lse)
        return self.hidden.new_empty(0) if logp is None else logp

    def _logp(self, rows: slice, engine: Engine, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and log-sum-exps, (n,) each, of hidden (T, H)'s rows; no logits are kept."""
        n = rows.stop - rows.start
        dtype = compute_dtype(self.hidden.dtype)
        logp = torch.empty(n, dtype=dtype, device=self.hidden.device)
        lse = torch.empty_like(logp)
        for part in pieces(rows, engine.logp_rows):
            local = slice(part.start - rows.start, part.stop - rows.start)
            x = hidden.index_select(0, self.row[part])
            logp[local], lse[local] = engine.logp(x, self.target[part])
        return logp, lse

    def _backward(self, rows: slice, coef: Tensor) -> None:
        dx = self.engine.backward(coef)
        if self.dhidden is not None and dx is not None:
            self.dhidden.index_copy_(0, self.row[rows], dx.to(self.dhidden.dtype))
