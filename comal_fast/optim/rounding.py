"""float32 → bfloat16, up or down at random, so that the mean is kept."""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(out: Tensor, x: Tensor, generator: torch.Generator) -> None:
    """Write x (N,) float32 into out (N,) bfloat16, rounded without bias; x serves as workspace.

    One of the two neighbours of each number, with the probabilities that make x the mean; what
    bfloat16 holds exactly, infinities and NaN included, stays. So updates below half a unit in the
    last place, which rounding to nearest loses every time, arrive on average
    (arXiv 2010.06192; bfloat16 is float32 without its lower 16 bits).
    """
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    noise.masked_fill_(x.isnan(), 0)  # a NaN of all ones would carry into the sign
    bits = x.view(torch.int32)
    bits.add_(noise).bitwise_and_(-(1 << 16))
    out.copy_(x)
