"""QuACK's chunked linear cross-entropy (cuBLAS and CuTe)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.contender import Contender, Missing
from bench.problem import CROSS_ENTROPY, Leaves, Problem, Size

NAME = "QuACK chunked linear CE"


def contenders(size: Size) -> Iterator[Contender | Missing]:
    """The contender, asked for the mean cross-entropy: it only sums or averages over tokens."""
    if not size.cuda:
        yield Missing(NAME, "CuTe kernels: needs CUDA")
        return
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def loss(p: Problem, leaves: Leaves) -> Tensor:
        return chunked_linear_cross_entropy(*leaves, p.target, reduction="mean")

    yield Contender(NAME, loss, objective=CROSS_ENTROPY)
