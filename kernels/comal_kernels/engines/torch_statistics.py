"""Statistics in plain torch: the torch engine's products and sums, with an epilogue of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.engines.statistics import Slopes, Statistics, from_sums
from comal_kernels.engines.torch import TorchEngine

_NOWHERE = -1e4  # in place of −∞, whose product with a probability of 0 is no number


class TorchStatistics(TorchEngine):
    """`StatisticsEngine` in any floating dtype, on any device."""

    def statistics(self, x: Tensor, target: Tensor, k: int) -> Statistics:
        x, n, vocab = x.to(self.dtype), x.shape[0], self.head.weight.shape[0]
        outer, slices, states = self.head.outer, self._slices(n), (x * self.head.inner).t()
        scratch, every = self._scratch(x, slices), torch.arange(n, device=x.device)
        top, best = x.new_full((n,), -torch.inf), torch.zeros_like(target)
        picked = x.new_empty(n)
        total, weighted, sums = (x.new_zeros(n, dtype=torch.float64) for _ in range(3))
        values, ids = x.new_empty(0, n), target.new_empty(0, n)
        for lo, hi in slices:
            z = scratch[: hi - lo]
            self._project(states, lo, hi, z)
            if self.head.softcap:
                z.mul_(outer)
            sums += z.sum(0, dtype=torch.float64)
            here = (target >= lo) & (target < hi)
            picked = torch.where(here, z[(target - lo).clamp(0, hi - lo - 1), every], picked)
            word = z.argmax(0)
            peak = z[word, every]
            best = torch.where(peak > top, word + lo, best)
            if k:
                values, ids = _likeliest(values, ids, z, lo, k)
            raised = peak.maximum(top)
            fall = (top - raised).double().nan_to_num(neginf=_NOWHERE)  # NaN: both are −∞
            weighted = fall.exp() * (weighted + fall * total)
            total = fall.exp() * total
            gap = z.sub_(raised.nan_to_num(neginf=0.0))
            exp = gap.exp()
            total += exp.sum(0)
            weighted += exp.mul_(gap.clamp_(min=_NOWHERE)).sum(0)
            top = raised
        hit = best == target
        means = sums / vocab
        return from_sums(picked, top, total, weighted, means, hit, values.t(), ids.t(), self.dtype)

    def differentiate(
        self, x: Tensor, target: Tensor, found: Statistics, by: Slopes
    ) -> Tensor | None:
        vocab, n = self.head.weight.shape[0], x.shape[0]
        self.x, self.z = x.to(self.dtype), self._held(n)
        outer, states = self.head.outer, (self.x * self.head.inner).t()
        zero = self.x.new_zeros(n)
        of_p, of_entropy = zero.clone(), -(zero if by.entropy is None else by.entropy)
        if by.lse is not None:
            of_p += by.lse
        if by.logp is not None:
            of_p -= by.logp
        if by.topk is not None:
            of_p -= by.topk.sum(1)
        of_p += of_entropy * found.entropy
        exact = (-found.rest).exp()
        of_p, of_entropy = of_p * exact, of_entropy * exact
        every = torch.arange(n, device=x.device)
        for lo, hi in self._slices(n):
            z = self.z[lo:hi]
            self._project(states, lo, hi, z)
            slope = 1.0 - z.square() if self.head.softcap else None
            gap = z.mul_(outer).sub_(found.lse)
            p = gap.exp()
            if by.entropy is None:
                torch.mul(p, of_p, out=z)
            else:
                gap.clamp_(min=_NOWHERE).mul_(of_entropy).add_(of_p).mul_(p)
            if by.mean_logit is not None:
                z += by.mean_logit / vocab
            if by.logp is not None:
                _add_at(z, target - lo, by.logp, every)
            if by.topk is not None:
                for ids, share in zip(found.topk_ids.t(), by.topk.t(), strict=True):
                    _add_at(z, ids - lo, share, every)
            if slope is not None:
                z.mul_(slope)
        # z is d loss / d logits: no sum to divide by, and a sign that `backward` takes for −logp's
        self.total = torch.ones(n, dtype=torch.float64, device=x.device)
        return self.backward(x.new_full((n,), -1.0))


def _likeliest(values: Tensor, ids: Tensor, z: Tensor, lo: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest (k, n) and their words, of those so far and of a slice z (words, n)."""
    new, at = z.topk(min(k, z.shape[0]), dim=0)
    values, ids = torch.cat([values, new]), torch.cat([ids, at + lo])
    values, order = values.topk(min(k, values.shape[0]), dim=0)
    return values, ids.gather(0, order)


def _add_at(z: Tensor, word: Tensor, share: Tensor, every: Tensor) -> None:
    """Add share (n,) to the rows' words, where they are in this slice z (words, n)."""
    here = (word >= 0) & (word < z.shape[0])
    place = word.clamp(0, z.shape[0] - 1)
    z[place, every] += torch.where(here, share.to(z.dtype), 0.0)
