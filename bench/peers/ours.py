"""This library."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.contender import Contender
from bench.problem import Leaves, Problem, Size
from comal_kernels import prox_loss

NAME = "comal_kernels"
FILTER = 2.0**-12  # below bfloat16's resolution of a gradient


def loss(p: Problem, leaves: Leaves, **options: Any) -> Tensor:
    """The DPO loss by comal_kernels.prox_loss."""
    count = len(p.cu_seqlens) - 1
    return prox_loss(
        *leaves,
        target=p.host_target,
        cu_seqlens=p.cu_seqlens,
        loss="dpo",
        chosen=torch.arange(0, count, 2),
        rejected=torch.arange(1, count, 2),
        ref_logp=p.ref_logp,
        beta=p.beta,
        **options,
    ).loss


def contenders(size: Size) -> Iterator[Contender]:
    """Contenders: exact and, where it is not slower, with the gradient filter."""
    yield Contender(NAME, loss)
    if size.device.type == "cpu":
        filtered = functools.partial(loss, grad_filter=FILTER)
        yield Contender(f"{NAME}, grad_filter=2⁻¹²", filtered, exact=False)
