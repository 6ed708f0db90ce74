"""Liger: its chunked DPO, its per-token cross-entropy and its Triton cross-entropy."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.contender import Contender, Missing
from bench.problem import DPO_NO_REFERENCE, RESPONSE, Leaves, Problem, Size

PAIRS = (1, 16)  # pairs of a chunk


def contenders(size: Size) -> Iterator[Contender | Missing]:
    """Contenders by its chunked DPO and its cross-entropies.

    Chunked DPO takes no cached reference log-probs, so it is asked for DPO without a reference.
    Responses are of one length here, so that its padded layout costs it nothing.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
    from liger_kernel.ops import (
        LigerFusedLinearCrossEntropyFunction,
        LigerFusedLinearScaledCrossEntropyFunction,
    )

    def dpo(p: Problem, leaves: Leaves, pairs: int, compiled: bool) -> Tensor:
        hidden, weight = leaves
        states, words = hidden.view(-1, RESPONSE, hidden.shape[1]), p.target.view(-1, RESPONSE)
        function = LigerFusedLinearDPOLoss(
            beta=p.beta, use_ref_model=False, chunk_size=pairs, compiled=compiled
        )
        stacked = torch.cat([states[::2], states[1::2]])
        return function(weight, stacked, torch.cat([words[::2], words[1::2]]))[0]

    for pairs in PAIRS:
        for compiled in (False, True) if size.cuda else (False,):
            call = functools.partial(dpo, pairs=pairs, compiled=compiled)
            variant = f"{pairs} pairs a chunk" + (", compiled" if compiled else "")
            yield Contender("Liger chunked DPO", call, variant, DPO_NO_REFERENCE)

    def scaled(p: Problem, leaves: Leaves) -> Tensor:
        return p.dpo(-LigerFusedLinearScaledCrossEntropyFunction.apply(*leaves, p.target))

    hopper = size.cuda and torch.cuda.get_device_capability(size.device) == (9, 0)
    path = "CuTe, SM90" if hopper else "its torch path, verl's chunks of 512"
    yield Contender(f"Liger scaled linear CE ({path})", scaled)

    def triton_ce(p: Problem, leaves: Leaves) -> Tensor:
        out = LigerFusedLinearCrossEntropyFunction.apply(
            *leaves, p.target, None, None, -100, 0.0, 0.0, "none"
        )
        return p.dpo(-(out[0] if isinstance(out, tuple) else out))

    name = "Liger fused linear CE (Triton)"
    yield Contender(name, triton_ce) if size.cuda else Missing(name, "needs CUDA")
