"""What one writes without a library: full logits, compiled, or in chunks that are recomputed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.contender import Contender
from bench.problem import Leaves, Problem, Size, plain_loss, token_logps

CHUNKS = (256, 1024)  # tokens whose logits are alive at a time


def full(size: Size) -> Iterator[Contender]:
    """The contender with full logits, eager."""
    yield Contender("plain torch, full logits", plain_loss, bounded=False)


def compiled(size: Size) -> Iterator[Contender]:
    """The contender with full logits, through torch.compile."""
    logps = torch.compile(token_logps)

    def compiled_loss(p: Problem, leaves: Leaves) -> Tensor:
        return p.dpo(logps(*leaves, p.target))

    yield Contender("plain torch, full logits, torch.compile", compiled_loss, bounded=False)


def checkpointed(size: Size) -> Iterator[Contender]:
    """Contenders whose backward pass computes the logits of a chunk anew, as verl's torch path."""

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
