"""The contenders of the head: each takes a problem and its leaves, and gives the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.problem import Leaves, Problem
from comal_kernels import prox_loss

Contender = Callable[[Problem, Leaves], Tensor]
TRL_CHUNKS = (64, 128, 256, 512, 1024)  # words of a tile; the best one counts


def ours(p: Problem, leaves: Leaves, **options: Any) -> Tensor:
    """comal_kernels.prox_loss."""
    count = len(p.cu_seqlens) - 1
    return prox_loss(
        *leaves,
        target=p.target,
        cu_seqlens=p.cu_seqlens,
        loss="dpo",
        chosen=torch.arange(0, count, 2),
        rejected=torch.arange(1, count, 2),
        ref_logp=p.ref_logp,
        beta=p.beta,
        **options,
    ).loss


def plain(p: Problem, leaves: Leaves) -> Tensor:
    """Full float32 logits and autograd (float64 logits for float64 leaves)."""
    hidden, weight = leaves
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return p.dpo(-torch.nn.functional.cross_entropy(logits, p.target, reduction="none"))


def trl(chunk: int) -> Contender:
    """TRL's per-token log-probs, DPO on top."""
    from trl.kernels import ChunkedLogProbFunction

    def contender(p: Problem, leaves: Leaves) -> Tensor:
        logp, *_ = ChunkedLogProbFunction.apply(*leaves, None, p.target, 1.0, chunk, None, 1.0, ())
        return p.dpo(logp)

    return contender


def peers(vocab: int) -> Iterator[tuple[str, Contender | str]]:
    """(name, contender), or (name, why it is not there)."""
    yield "plain torch, full logits", plain
    for chunk in (c for c in TRL_CHUNKS if c < vocab):
        name = f"TRL ChunkedLogProbFunction, chunk_size={chunk}"
        try:
            yield name, trl(chunk)
        except ImportError as error:
            yield "TRL ChunkedLogProbFunction", f"not installed ({error})"
            return
