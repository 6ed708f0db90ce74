"""verl's log-probs: its torch function for chunks of tokens, and its Triton kernel."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.contender import Contender, Missing
from bench.problem import Leaves, Problem, Size


def contenders(size: Size) -> Iterator[Contender | Missing]:
    """Contenders by per-token log-probs (and the entropy, always), DPO on top."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

    def chunked(p: Problem, leaves: Leaves) -> Tensor:
        return p.dpo(FusedLinearForPPOFunction.apply(*leaves, p.target)[0])

    yield Contender("verl FusedLinearForPPO, torch", chunked)
    name = "verl linear_cross_entropy (Triton)"
    if not size.cuda:
        yield Missing(name, "needs CUDA")
        return
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    def triton(p: Problem, leaves: Leaves) -> Tensor:
        return p.dpo(linear_cross_entropy(*leaves, p.target)[0])

    yield Contender(name, triton)
