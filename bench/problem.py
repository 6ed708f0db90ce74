"""The head's problem: packed pairs, a head weight, cached reference log-probs, a DPO loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESPONSE = 64  # tokens of a response
Leaves = tuple[Tensor, Tensor]  # hidden (T, H), weight (V, H)


@dataclass(frozen=True)
class Problem:
    """DPO, which every peer can do, over packed pairs: response 2i is preferred to 2i + 1."""

    hidden: Tensor  # (T, H)
    weight: Tensor  # (V, H)
    target: Tensor  # (T,) int64
    cu_seqlens: Tensor  # (S + 1,) int32, on the host
    ref_logp: Tensor  # (S,)
    beta: float = 0.1

    def leaves(self, dtype: torch.dtype) -> Leaves:
        """Fresh leaves of hidden and weight."""
        hidden, weight = (x.detach().to(dtype) for x in (self.hidden, self.weight))
        return hidden.requires_grad_(), weight.requires_grad_()

    def dpo(self, logp: Tensor) -> Tensor:  # (T,) → ()
        """The loss from per-token log-probs, in plain torch."""
        rewards = logp.view(-1, RESPONSE).sum(1) - self.ref_logp
        return -torch.nn.functional.logsigmoid(self.beta * (rewards[::2] - rewards[1::2])).mean()


def make_problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Seeded random tensors at the scale of a trained model's: logits of standard deviation ~2."""
    generator = torch.Generator().manual_seed(0)
    count = tokens // RESPONSE // 2 * 2
    if count < 2 or tokens != count * RESPONSE:
        raise ValueError(f"--tokens: {tokens} is not a positive multiple of {2 * RESPONSE}")
    states = torch.randn(tokens, hidden, generator=generator)
    weight = torch.randn(vocab, hidden, generator=generator) * 2 / hidden**0.5
    target = torch.randint(0, vocab, (tokens,), generator=generator)
    cached = torch.randn(count, generator=generator) * 3 - 12.0 * RESPONSE
    return Problem(
        states.to(device, dtype),
        weight.to(device, dtype),
        target.to(device),
        torch.arange(0, tokens + 1, RESPONSE, dtype=torch.int32),
        cached.to(device),
    )
