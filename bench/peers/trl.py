"""TRL's chunked log-probs: the kernel inside its DPOTrainer."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import Tensor

from bench.contender import Contender
from bench.problem import Leaves, Problem, Size

CHUNKS = (64, 128, 256, 512, 1024)  # words of a tile on a CPU
GPU_CHUNKS = (2048, 8192, 16384)
NAME = "TRL ChunkedLogProbFunction"


def contenders(size: Size) -> Iterator[Contender]:
    """Contenders by log-probs in tiles of the vocabulary, DPO on top; nothing else is asked for."""
    from trl.kernels import ChunkedLogProbFunction

    def loss(p: Problem, leaves: Leaves, chunk: int) -> Tensor:
        logp, *_ = ChunkedLogProbFunction.apply(*leaves, None, p.target, 1.0, chunk, None, 1.0, ())
        return p.dpo(logp)

    for chunk in GPU_CHUNKS if size.cuda else CHUNKS:
        if chunk < size.vocab:
            call = functools.partial(loss, chunk=chunk)
            yield Contender(NAME, call, f"chunk_size={chunk}")
