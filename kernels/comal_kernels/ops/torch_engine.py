"""The engine in plain torch: BLAS products, and an epilogue that seldom touches the logits.

The softmax overwrites the logits a few rows at a time, so that memory is swept once, and the
per-row coefficient is applied to x and dx, H wide, rather than to the logits, V wide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.head import MIB, Head, compute_dtype
from comal_kernels.ops.products import surviving

BLOCK_BYTES = 1 * MIB  # what one block of logits may take: stays in a core's cache
CAST_BYTES = 32 * MIB  # slice of a half precision weight that is widened at a time


class TorchEngine:
    """Logits and accumulators in float32 (float64 for float64 inputs), whatever the input dtype."""

    def __init__(
        self,
        head: Head,
        capacity: int,
        *,
        need_x: bool,
        need_weight: bool,
        need_bias: bool,
        grad_filter: float | None = None,
    ) -> None:
        self.head, self.capacity, self.logp_rows = head, capacity, capacity
        self.need_x, self.need_weight = need_x, need_weight
        self.dtype = compute_dtype(head.weight.dtype)
        self.buffer: Tensor | None = None  # (capacity, V), made on first use
        self.lender: TorchEngine | None = None  # whose buffer is used instead
        self.dweight: Tensor | None = None  # (V, H), made on first use
        self.dbias: Tensor | None = None
        if need_bias:
            self.dbias = torch.zeros(head.weight.shape[0], dtype=self.dtype, device=self._device)
        vocab, width = head.weight.shape
        self.native, self.grad_filter = head.weight.dtype == self.dtype, grad_filter
        step = max(1, CAST_BYTES // (4 * max(1, width)))
        self.parts = [(v, min(v + step, vocab)) for v in range(0, vocab, step)]
        self.slices = [(0, vocab)] if self.native else self.parts

    @property
    def _device(self) -> torch.device:
        return self.head.weight.device

    def _weight(self, lo: int, hi: int) -> Tensor:  # (hi - lo, H) in the compute dtype
        return self.head.weight if self.native else self.head.weight[lo:hi].to(self.dtype)

    def _rows(self, n: int) -> Tensor:  # (n, V)
        if self.buffer is None:
            shape = (self.capacity, self.head.weight.shape[0])
            self.buffer = torch.empty(shape, dtype=self.dtype, device=self._device)
        return self.buffer[:n]

    def _project(self, x: Tensor) -> Tensor:  # (n, H) → (n, V): inner · (x Wᵀ + bias)
        z = (self if self.lender is None else self.lender)._rows(x.shape[0])
        scaled = x if self.head.inner == 1.0 else x * self.head.inner
        for lo, hi in self.slices:
            w, out = self._weight(lo, hi).t(), z[:, lo:hi]
            if self.head.bias is None:
                torch.mm(scaled, w, out=out)
            else:
                bias = self.head.bias[lo:hi].to(self.dtype) * self.head.inner
                torch.addmm(bias, scaled, w, out=out)
        return z.tanh_() if self.head.softcap else z

    def _blocks(self, n: int) -> list[slice]:
        rows = max(1, BLOCK_BYTES // (self.head.weight.shape[0] * self.dtype.itemsize))
        return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]

    def _reduce(self, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log-prob and log-sum-exp (n,) of z (n, V). Without softcap z becomes the softmax."""
        picked = z.gather(1, target[:, None])[:, 0] * self.head.outer
        lse = torch.empty_like(picked)
        for rows in self._blocks(z.shape[0]):
            # torch.softmax and log_softmax sum in order: 1e-5 off a token in float32. sum() is not
            part = z[rows] * self.head.outer if self.head.softcap else z[rows]
            top = part.amax(1, keepdim=True)
            total = part.sub_(top).exp_().sum(1, keepdim=True)
            if not self.head.softcap:
                part.div_(total)
            lse[rows] = total.log_().add_(top)[:, 0]
        return picked - lse, lse

    def logp(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._reduce(self._project(x.to(self.dtype)), target)

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None = None) -> Tensor | None:
        self.x, self.target = x.to(self.dtype), target
        self.z = self._project(self.x)
        if lse is None:
            logp, self.lse = self._reduce(self.z, target)
            return logp
        self.lse = lse
        if not self.head.softcap:
            torch.softmax(self.z, 1, out=self.z)  # as fast as subtracting lse: one sweep
        return None

    def _to_gradient(self) -> Tensor:  # (n, V): d logp / d z0 up to sign and inner · outer
        z, one = self.z, self.target[:, None]
        if not self.head.softcap:
            return z.scatter_(1, one, z.gather(1, one) - 1.0)
        for rows in self._blocks(z.shape[0]):
            t = z[rows]
            prob = (t * self.head.outer).sub_(self.lse[rows, None]).exp_()
            prob.scatter_(1, one[rows], prob.gather(1, one[rows]) - 1.0)
            t.square_().neg_().add_(1.0).mul_(prob)
        return z

    def backward(self, coef: Tensor) -> Tensor | None:
        grad = self._to_gradient()
        factor = (-self.head.inner * self.head.outer * coef.to(self.dtype))[:, None]  # (n, 1)
        if self.dbias is not None:
            self.dbias.addmv_(grad.t(), factor[:, 0])
        if self.grad_filter is not None:
            return self._filtered(grad, factor)
        if self.need_weight:
            self._add_weight_grad(grad, self.x * factor)
        if not self.need_x:
            return None
        dx = torch.empty_like(self.x)
        for lo, hi in self.slices:
            w = self._weight(lo, hi)
            if lo == 0:
                torch.mm(grad[:, lo:hi], w, out=dx)
            else:
                dx.addmm_(grad[:, lo:hi], w)
        return dx.mul_(factor)

    def _filtered(self, grad: Tensor, factor: Tensor) -> Tensor | None:  # (n, V), (n, 1)
        dx, x = torch.zeros_like(self.x), self.x * factor
        if self.need_weight and self.dweight is None:
            self.dweight = torch.zeros_like(self.head.weight, dtype=self.dtype)
        for lo, hi in self.parts:  # what is gathered is a copy: a part of the head at a time
            kept = surviving(grad[:, lo:hi], self.grad_filter or 0.0)
            part, words = grad[:, lo:hi].index_select(1, kept), kept + lo
            if self.dweight is not None:
                total = self.dweight.index_select(0, words).addmm_(part.t(), x)
                self.dweight.index_copy_(0, words, total)
            if self.need_x:
                dx.addmm_(part, self.head.weight.index_select(0, words).to(self.dtype))
        return dx.mul_(factor) if self.need_x else None

    def _add_weight_grad(self, grad: Tensor, x: Tensor) -> None:
        if self.dweight is None:
            shape = self.head.weight.shape
            self.dweight = torch.empty(shape, dtype=self.dtype, device=self._device)
            torch.mm(grad.t(), x, out=self.dweight)
        else:
            self.dweight.addmm_(grad.t(), x)

    def reader(self, head: Head) -> TorchEngine:
        other = TorchEngine(head, self.capacity, need_x=False, need_weight=False, need_bias=False)
        other.lender = self
        return other

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        dweight = self.dweight
        if self.need_weight:
            dweight = torch.zeros_like(weight) if dweight is None else dweight.to(weight.dtype)
        return dweight, None if self.dbias is None or bias is None else self.dbias.to(bias.dtype)
