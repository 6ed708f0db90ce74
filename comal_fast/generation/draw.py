"""Tokens drawn from logits: one uniform number each, and the inverse of the distribution."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512  # words whose probabilities are added up before any are looked at singly
CACHE = 1 << 20  # bytes of logits that a CPU sweeps at a time
NOT_A_TOKEN = -1


def uniforms(seed: str, prompt: Sequence[int], sample: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1) that depend on the seed, the prompt and the sample alone."""
    text = f"{seed} {sample} {' '.join(map(str, prompt))}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


def draw(logits: Tensor, drawn: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """logits (B, V), drawn (B,) float64 in [0, 1) → tokens (B,); NOT_A_TOKEN where there is none.

    That is where the logits hold NaN, +∞ or nothing but −∞. `top_p`: only the likeliest words whose
    probabilities add up to it.
    """
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, CACHE // (4 * logits.shape[1]))
    parts = zip(logits.split(rows), drawn.split(rows), strict=True)
    return torch.cat([_draw(z, u, temperature, top_p) for z, u in parts])


def _draw(logits: Tensor, drawn: Tensor, temperature: float, top_p: float) -> Tensor:
    size, vocab = logits.shape
    z = logits.float()
    order = None
    if top_p < 1.0:
        z, order = z.sort(-1, descending=True)
    z = (z - z.amax(-1, keepdim=True)) / temperature
    blocks = -(-vocab // BLOCK)
    mass = F.pad(z.exp_(), (0, blocks * BLOCK - vocab)).view(size, blocks, BLOCK)
    if order is not None:  # the first word is always kept
        before = _running_sums(mass.flatten(1)) - mass.flatten(1)
        kept = before < top_p * mass.sum((1, 2), dtype=torch.float64)[:, None]
        mass = mass * kept.view(mass.shape)
    upto = _running_sums(mass.sum(-1))  # (B, blocks)
    total = upto[:, -1:]
    block = _first_beyond(upto, drawn[:, None] * total)
    here = _running_sums(mass[torch.arange(size, device=z.device), block[:, 0]])
    below = F.pad(upto, (1, 0)).gather(1, block)
    word = _first_beyond(here, drawn[:, None] * total - below)
    token = (block * BLOCK + word).clamp(max=vocab - 1)
    if order is not None:
        token = order.gather(1, token)
    fine = (total > 0) & total.isfinite()
    return torch.where(fine, token, NOT_A_TOKEN)[:, 0]


def _running_sums(x: Tensor) -> Tensor:
    """Return the sums of x (B, n) up to each entry, its own included, in float64.

    torch's `cumsum` has no fixed order on CUDA and raises in deterministic mode. There each pass
    adds to every entry the sum that ends 1, 2, 4 … places before it.
    """
    if not x.is_cuda or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(-1, dtype=torch.float64)
    return scan_by_doubling(x.double())


def scan_by_doubling(x: Tensor) -> Tensor:
    """Return the running sums of x (B, n) by elementwise additions alone, in one order."""
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :step], x[:, step:] + x[:, :-step]], dim=1)
        step *= 2
    return x


def _first_beyond(upto: Tensor, wanted: Tensor) -> Tensor:
    """(B, 1) index of the first of upto (B, n), which never falls, beyond wanted (B, 1).

    Where rounding leaves none, the first that is as large as the last: one with a share of its own.
    """
    last = upto[:, -1:].contiguous()
    found = torch.searchsorted(upto, wanted, right=True)
    return torch.where(wanted < last, found, torch.searchsorted(upto, last)).clamp(
        max=upto.shape[1] - 1
    )
