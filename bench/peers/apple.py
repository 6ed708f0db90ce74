"""Apple's cut cross-entropy: Triton with and without its filter, and its torch implementation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.contender import Contender, Missing
from bench.problem import Leaves, Problem, Size


def contenders(size: Size) -> Iterator[Contender | Missing]:
    """Contenders by its per-token cross-entropy, DPO on top."""
    from cut_cross_entropy import linear_cross_entropy

    def loss(p: Problem, leaves: Leaves, **options: Any) -> Tensor:
        return p.dpo(-linear_cross_entropy(*leaves, p.target, reduction="none", **options))

    torch_path = functools.partial(loss, impl="torch_compile")
    yield Contender("cut_cross_entropy, impl=torch_compile", torch_path, bounded=False)
    for name, eps in (("its filter", "auto"), ("no filter", None)):
        name = f"cut_cross_entropy, impl=cce, {name}"
        if not size.cuda:
            yield Missing(name, "Triton kernels: needs CUDA")
            continue
        call = functools.partial(loss, impl="cce", filter_eps=eps)
        yield Contender(name, call, exact=eps is None)
