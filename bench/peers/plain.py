"""What one writes without a library: full logits, compiled, or in chunks that are recomputed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.peers.base import Contender
from bench.problem import DPO, OBJECTIVES, Leaves, Problem, Size

CHUNKS = (256, 1024)  # tokens whose logits are alive at a time


def token_logps(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """(n, H), (V, H), (n,) → (n,): float32 logits (float64 of float64), then log-softmax."""
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -torch.nn.functional.cross_entropy(logits, target, reduction="none")


def loss(p: Problem, leaves: Leaves, objective: str = DPO) -> Tensor:
    """Full logits and autograd: with float64 leaves, the reference that all are checked against."""
    return OBJECTIVES[objective](p, token_logps(*leaves, p.target))


def full(size: Size) -> Iterator[Contender]:
    """Eager, full logits."""
    yield Contender("plain torch, full logits", loss, bounded=False)


def compiled(size: Size) -> Iterator[Contender]:
    """The same through torch.compile."""
    logps = torch.compile(token_logps)

    def compiled_loss(p: Problem, leaves: Leaves) -> Tensor:
        return p.dpo(logps(*leaves, p.target))

    yield Contender("plain torch, full logits, torch.compile", compiled_loss, bounded=False)


def checkpointed(size: Size) -> Iterator[Contender]:
    """Chunks of tokens whose logits the backward pass computes anew, as verl's torch path does."""

    def chunked(p: Problem, leaves: Leaves, tokens: int) -> Tensor:
        hidden, weight = leaves
        parts = [
            checkpoint(token_logps, h, weight, t, use_reentrant=False)
            for h, t in zip(hidden.split(tokens), p.target.split(tokens), strict=True)
        ]
        return p.dpo(torch.cat(parts))

    for tokens in CHUNKS:
        call = functools.partial(chunked, tokens=tokens)
        yield Contender("checkpointed chunks (verl-style)", call, f"{tokens} tokens")
