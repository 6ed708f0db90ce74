"""From sequence log-probs to losses and one coefficient per sequence, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comal_kernels.chunks import Chunk, Plan
from comal_kernels.row import Prox, Terms
from comal_kernels.segment import segment_sum
from comal_kernels.transfer import Ints, to_device, to_devices


@dataclass(frozen=True)
class Inputs:
    """What the caller gave besides the head, in the caller's order."""

    chosen: Ints  # (P,), on the host
    rejected: Ints | None  # (P,), on the host
    ref: Tensor | None  # (S,); None too where it comes with each chunk (live_ref)
    last: Tensor | None  # (S,)
    reward: Tensor | None  # (S,)
    reward_margin: Tensor | None  # (P,), in place of reward
    preference: Tensor | None  # (P,)
    weight: Tensor | None  # (P,) pair_weight
    hyper: dict[str, float | Tensor | None]
    average_log_prob: bool = False
    live_ref: bool = False  # `refer` is called before `run`


class ProxStep:
    """A prox loss's pairs, all in float64 and plan order; `run` does those of one chunk."""

    def __init__(self, prox: Prox, inputs: Inputs, plan: Plan, device: torch.device) -> None:
        self.prox, self.device = prox, device
        arrays = [plan.pair, plan.seq, plan.link_pair, plan.link_sign, plan.seq_links]
        listed = [inputs.chosen] if inputs.rejected is None else [inputs.chosen, inputs.rejected]
        arrays += [plan.group_pairs, *(x[plan.pair] for x in listed)]
        self.pair, self.seq, self.link_pair, sign, *rest = to_devices(arrays, device)
        self.seq_links, self.group_pairs, self.chosen, *others = rest
        self.rejected = others[0] if others else None
        self.link_sign = sign.double()
        self.share: Tensor | None = None  # (S,) in plan order: 1 / tokens of each sequence
        if inputs.average_log_prob:
            self.share = 1.0 / to_device(np.maximum(plan.seq_rows, 1), device).double()
        count = len(plan.pair)
        weight = self._per_pair(inputs.weight)
        if weight is None:
            weight = torch.full((count,), 1.0 / count, dtype=torch.float64, device=device)
        self.weight = weight  # (P,)
        preference = self._per_pair(inputs.preference)
        if preference is None and "preference" in prox.optional:
            preference = torch.ones(count, dtype=torch.float64, device=device)
        self.ref = inputs.ref  # (S,) sums, in the caller's order
        if inputs.live_ref:
            self.ref = torch.zeros(len(plan.seq), dtype=torch.float64, device=device)
        self.terms = Terms(
            ref=self._per_seq(self._averaged(self.ref)),
            last=self._per_seq(self._averaged(inputs.last)),
            reward=self._per_pair(inputs.reward_margin)
            if inputs.reward is None
            else self._per_seq(inputs.reward),
            preference=preference,
            hyper={name: self._hyper(name, value) for name, value in inputs.hyper.items()},
        )
        self.logp = torch.zeros(len(plan.seq), dtype=torch.float64, device=device)
        self.value = torch.zeros_like(self.logp)  # what the loss compares: sums, or means
        self.loss = torch.zeros_like(self.weight)  # (P,) unweighted φ
        self.slope = torch.zeros_like(self.weight)  # (P,) pair_weight · φ'
        self.margin = torch.zeros_like(self.weight)  # (P,) z − anchor
        self.wanted = torch.zeros_like(self.weight)  # (P,) what the margin is pulled towards

    def _per_pair(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else to_device(x, self.device).double().index_select(0, self.pair)

    def difference(self, x: Tensor, at: slice = slice(None)) -> Tensor:
        """x (S,) in the caller's order → (p,): chosen less rejected, or of the listed response."""
        first = x.index_select(0, self.chosen[at])
        return first if self.rejected is None else first - x.index_select(0, self.rejected[at])

    def _per_seq(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else self.difference(to_device(x, self.device).double())

    def _averaged(self, x: Tensor | None) -> Tensor | None:  # (S,) sums → (S,) means, if wanted
        if x is None or self.share is None:
            return x
        share = torch.empty_like(self.share).index_copy_(0, self.seq, self.share)
        return to_device(x, self.device).double() * share

    def _hyper(self, name: str, value: float | Tensor | None) -> float | Tensor:
        if value is None:
            return 0.0  # a baseline to be solved: the residuals are centred instead
        if not isinstance(value, Tensor):
            return value
        if self.prox.hyper[name].per == "response":
            return to_device(value, self.device).double().index_select(0, self.pair)
        return to_device(value, self.device).double().index_select(0, self.chosen)

    def refer(self, chunk: Chunk, seq_logp: Tensor) -> None:
        """Take the reference's seq_logp (s,) float64 of the chunk's sequences, for `run`."""
        assert self.ref is not None and self.terms.ref is not None
        self.ref.index_copy_(0, self.seq[chunk.seqs], seq_logp)
        if self.share is not None:
            seq_logp = seq_logp * self.share[chunk.seqs]
        self.value.index_copy_(0, self.seq[chunk.seqs], seq_logp)  # till `run` needs the place
        self.terms.ref[chunk.pairs] = self.difference(self.value, chunk.pairs)

    def run(self, chunk: Chunk, seq_logp: Tensor) -> Tensor:
        """seq_logp (s,) float64 of the chunk's sequences → coefficients d loss / d logp (s,)."""
        self.logp.index_copy_(0, self.seq[chunk.seqs], seq_logp)
        if self.share is not None:
            seq_logp = seq_logp * self.share[chunk.seqs]
        self.value.index_copy_(0, self.seq[chunk.seqs], seq_logp)
        at = chunk.pairs
        if at.start == at.stop:
            return torch.zeros_like(seq_logp)
        z, terms = self.difference(self.value, at), self._slice(at)
        u = z - self.prox.offset(terms)
        if chunk.groups.start != chunk.groups.stop:
            u = u - self._group_means(u, self.weight[at], chunk)
        self.loss[at] = self.prox.phi(u, terms)
        self.slope[at] = self.weight[at] * self.prox.dphi(u, terms)
        self.margin[at] = z - self.prox.anchor(terms)
        self.wanted[at] = self.margin[at] - u
        pushes = self.slope.index_select(0, self.link_pair[chunk.links])
        pushes = pushes * self.link_sign[chunk.links]
        coef = segment_sum(pushes, self.seq_links[chunk.seqs])
        return coef if self.share is None else coef * self.share[chunk.seqs]

    def _group_means(self, u: Tensor, weight: Tensor, chunk: Chunk) -> Tensor:
        """u, weight (p,) → (p,) weighted mean residual of each entry's group, its best baseline."""
        lengths = self.group_pairs[chunk.groups]
        total = segment_sum(weight, lengths)
        mean = segment_sum(weight * u, lengths) / torch.where(total == 0, 1.0, total)
        return mean.repeat_interleave(lengths, output_size=u.shape[0])

    def _slice(self, at: slice) -> Terms:
        t = self.terms
        ref, last, reward, preference = (
            None if x is None else x[at] for x in (t.ref, t.last, t.reward, t.preference)
        )
        hyper = {k: v[at] if isinstance(v, Tensor) else v for k, v in t.hyper.items()}
        return Terms(ref, last, reward, preference, hyper)

    def total(self) -> Tensor:  # ()
        return (self.weight * self.loss).sum()

    def accuracy(self) -> Tensor:  # ()
        hit = self.margin > 0 if self.prox.pairwise else self.margin * self.wanted > 0
        return hit.double().mean()

    def reported_margin(self) -> Tensor:  # (P,) in the caller's order
        scale = self.terms.hyper[self.prox.scale] if self.prox.scale else 1.0
        return self._caller_order(self.margin * scale)

    def pair_loss(self) -> Tensor:  # (P,) in the caller's order
        return self._caller_order(self.loss)

    def _caller_order(self, x: Tensor) -> Tensor:  # (P,) → (P,)
        return torch.empty_like(x).index_copy_(0, self.pair, x)
