"""The engine in plain torch: BLAS products, and an epilogue on logits that are still in cache.

The logits lie transposed, (V, n): all three products are faster so on a CPU, and a slice of the
vocabulary is one block of memory, its rows on lines of cache. Each slice becomes exp(z − top) right
after its product; 1 / Σ and the per-row coefficient are applied to x and dx, H wide, rather than to
the logits, V wide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.engines.products import surviving
from comal_kernels.engines.workspace import MIB, aligned
from comal_kernels.head import Head, compute_dtype

SLICE_BYTES = {"cpu": 8 * MIB, "cuda": 64 * MIB}  # logits of a slice: stay in cache
CAST_BYTES = 32 * MIB  # slice of a half precision weight that is widened at a time
BACK_WORDS = 4096  # words that dx is summed over at a time: fastest of 512 … 49152 on a CPU
LOGP_ROWS = 1024  # without gradients only one slice of logits is held
LARGEST_TOTAL = 1e18  # of Σ exp(z − top): far from overflow, and its inverse from underflow


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
        self.head, self.capacity, self.logp_rows = head, capacity, LOGP_ROWS
        self.need_x, self.need_weight = need_x, need_weight
        self.dtype = compute_dtype(head.weight.dtype)
        self.buffer: Tensor | None = None  # (V · aligned(capacity),), made on first use
        self.dweight: Tensor | None = None  # (V, H), made on first use
        self.dbias: Tensor | None = None
        if need_bias:
            self.dbias = torch.zeros(head.weight.shape[0], dtype=self.dtype, device=self._device)
        self.native, self.grad_filter = head.weight.dtype == self.dtype, grad_filter
        self.cast_words = max(1, CAST_BYTES // (4 * max(1, head.weight.shape[1])))

    @property
    def _device(self) -> torch.device:
        return self.head.weight.device

    def _weight(self, lo: int, hi: int) -> Tensor:  # (hi - lo, H) in the compute dtype
        return self.head.weight[lo:hi].to(self.dtype)

    def _cuts(self, words: int) -> list[tuple[int, int]]:
        vocab = self.head.weight.shape[0]
        return [(lo, min(lo + words, vocab)) for lo in range(0, vocab, words)]

    def _slices(self, n: int) -> list[tuple[int, int]]:
        words = SLICE_BYTES.get(self._device.type, 8 * MIB) // (max(1, n) * self.dtype.itemsize)
        words = max(64, words)
        return self._cuts(words if self.native else min(words, self.cast_words))

    def _scratch(self, x: Tensor, slices: list[tuple[int, int]]) -> Tensor:  # one slice's logits
        words, n = slices[0][1], x.shape[0]
        return _transposed(x.new_empty(words * aligned(n)), words, n)

    def _project(self, x: Tensor, lo: int, hi: int, out: Tensor) -> None:
        """Write W x + inner · bias to out (hi - lo, n), or its tanh where there is a cap.

        x: (H, n), times inner already.
        """
        torch.mm(self._weight(lo, hi), x, out=out)
        if self.head.bias is not None:
            out.add_(self.head.bias[lo:hi, None].to(self.dtype), alpha=self.head.inner)
        if self.head.softcap:
            out.tanh_()

    def _sweep(
        self, x: Tensor, target: Tensor, top: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, H) → the targets' logits, top and Σ exp(z − top), (n,) each; Σ is float64.

        top: any number near a row's largest logit; None takes the first slice's. z (V, n), where
        given, is left as Σ · d (−logp) / d z, up to the head's factors.
        """
        n, outer, slices = x.shape[0], self.head.outer, self._slices(x.shape[0])
        states = (x * self.head.inner).t()
        scratch = self._scratch(x, slices) if z is None else z
        order = target.argsort()
        starts = torch.tensor([lo for lo, _ in slices], device=target.device)
        edges = [*torch.searchsorted(target[order], starts).tolist(), n]
        picked = x.new_empty(n)
        total = torch.zeros(n, dtype=torch.float64, device=x.device)
        for i, (lo, hi) in enumerate(slices):
            part = scratch[: hi - lo] if z is None else scratch[lo:hi]
            self._project(states, lo, hi, part)
            mine = order[edges[i] : edges[i + 1]]
            picked[mine] = part[target[mine] - lo, mine]
            slope = None
            if self.head.softcap:
                slope = None if z is None else 1.0 - part.square()
                part.mul_(outer)
            top = part.amax(0) if top is None else top
            total += part.sub_(top).exp_().sum(0)
            if slope is not None:
                part.mul_(slope)
        assert top is not None  # there is at least one slice
        if z is not None:
            slope = 1.0 - picked.square() if self.head.softcap else torch.ones_like(picked)
            z[target, torch.arange(n, device=target.device)] -= total.to(self.dtype) * slope
        return picked * outer, top, total

    def _reduce(self, x: Tensor, target: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (n, H), target (n,) → log-prob and log-sum-exp (n,); z as in `_sweep`."""
        picked, top, self.total = self._sweep(x, target, None, z)
        if not bool((self.total < LARGEST_TOTAL).all()):  # or not a number: −inf throughout a slice
            picked, top, self.total = self._sweep(x, target, self._top(x), z)
        lse = self.total.log().add_(top).to(self.dtype)
        # the logit less top first: both are large where the difference is small
        return ((picked - top) - self.total.log()).to(self.dtype), lse

    def _top(self, x: Tensor) -> Tensor:  # (n, H) → (n,) largest logits, by a product of its own
        top, states, slices = None, (x * self.head.inner).t(), self._slices(x.shape[0])
        scratch = self._scratch(x, slices)
        for lo, hi in slices:
            part = scratch[: hi - lo]
            self._project(states, lo, hi, part)
            largest = part.amax(0) * self.head.outer
            top = largest if top is None else top.maximum(largest)
        assert top is not None
        return top

    def logp(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._reduce(x.to(self.dtype), target, None)

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None = None) -> Tensor | None:
        self.x, self.z = x.to(self.dtype), self._held(x.shape[0])
        if lse is None:
            return self._reduce(self.x, target, self.z)[0]
        *_, self.total = self._sweep(self.x, target, lse, self.z)
        return None

    def _held(self, n: int) -> Tensor:
        """(V, n) for the logits of n rows."""
        vocab = self.head.weight.shape[0]
        if self.buffer is None:
            size = aligned(self.capacity) * vocab
            self.buffer = torch.empty(size, dtype=self.dtype, device=self._device)
        return _transposed(self.buffer, vocab, n)

    def backward(self, coef: Tensor) -> Tensor | None:
        z, slope = self.z, -self.head.inner * self.head.outer * coef.double()
        if self.grad_filter is not None:
            return self._filtered(slope.to(self.dtype)[:, None])
        factor = (slope / self.total).to(self.dtype)[:, None]  # (n, 1)
        if self.dbias is not None:
            self.dbias.addmv_(z, factor[:, 0])
        if self.need_weight:
            self._add_weight_grad(z, self.x * factor)
        if not self.need_x:
            return None
        dx = torch.zeros_like(self.x)
        for lo, hi in self._cuts(min(self.cast_words, BACK_WORDS)):
            dx.addmm_(z[lo:hi].t(), self._weight(lo, hi))
        return dx.mul_(factor)

    def _filtered(self, factor: Tensor) -> Tensor | None:  # (n, 1)
        dx, x = torch.zeros_like(self.x), self.x * factor
        inverse = self.total.reciprocal().to(self.dtype)
        if self.need_weight and self.dweight is None:
            self.dweight = torch.zeros_like(self.head.weight, dtype=self.dtype)
        for lo, hi in self._cuts(self.cast_words):  # what is gathered is a copy: some at a time
            grad = self.z[lo:hi].mul_(inverse)
            if self.dbias is not None:
                self.dbias[lo:hi].addmv_(grad, factor[:, 0])
            kept = surviving(grad.t(), self.grad_filter or 0.0)
            part, words = grad.index_select(0, kept), kept + lo
            if self.dweight is not None:
                total = self.dweight.index_select(0, words).addmm_(part, x)
                self.dweight.index_copy_(0, words, total)
            if self.need_x:
                dx.addmm_(part.t(), self.head.weight.index_select(0, words).to(self.dtype))
        return dx.mul_(factor) if self.need_x else None

    def _add_weight_grad(self, grad: Tensor, x: Tensor) -> None:  # (V, n), (n, H)
        if self.dweight is None:
            shape = self.head.weight.shape
            self.dweight = torch.empty(shape, dtype=self.dtype, device=self._device)
            torch.mm(grad, x, out=self.dweight)
        else:
            self.dweight.addmm_(grad, x)

    def reader(self, head: Head) -> TorchEngine:
        return TorchEngine(head, self.capacity, need_x=False, need_weight=False, need_bias=False)

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        dweight = self.dweight
        if self.need_weight:
            dweight = torch.zeros_like(weight) if dweight is None else dweight.to(weight.dtype)
        return dweight, None if self.dbias is None or bias is None else self.dbias.to(bias.dtype)


def _transposed(memory: Tensor, words: int, n: int) -> Tensor:
    """A view (words, n) of `memory`, each word's logits on their own lines of cache."""
    return memory[: words * aligned(n)].view(words, aligned(n))[:, :n]
