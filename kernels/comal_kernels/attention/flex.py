"""FlexAttention: the row as it is, nothing gathered, under a block-sparse mask.

A position q sees two ranges of keys: a(q) ≤ k < b(q) of its prefix and c(q) ≤ k ≤ q of its own. So
a mask takes three integers a position, and how many keys of a block it sees is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from comal_kernels.attention.layout import Engine, Layout, Options
from comal_kernels.errors import ModelError
from comal_kernels.transfer import to_devices

BLOCK = 128  # queries, and keys, of a block
ENDLESS = 1 << 30  # a window wider than any sequence


def flex(function: Callable[..., Tensor]) -> Engine:
    """The engine that `flex_attention`, compiled or not, makes."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, layout: Layout, options: Options
    ) -> Tensor:
        if options.dropout:
            raise ModelError("attn_implementation: flex_attention has no attention dropout")
        window = options.window
        out = function(
            query,
            key,
            value,
            score_mod=None if options.softcap is None else _capped(options.softcap),
            block_mask=layout.once(("flex", window), lambda: block_mask(layout, window)),
            scale=options.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2)

    return attend


def compiled(*arguments: Any, **options: Any) -> Tensor:
    """`flex_attention`, compiled for any number of tokens when it is first called."""
    return _compiled()(*arguments, **options)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache  # one function a value: a new one would be compiled anew
def _capped(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """The mask of a row, from (T, blocks) counts: never T × T."""
    a, b, c = _ranges(layout, window)
    length = len(a)

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((k >= a[q]) & (k < b[q])) | ((k >= c[q]) & (k <= q))

    blocks = -(-length // BLOCK)
    edges = torch.arange(blocks + 1, device=layout.device) * BLOCK
    low, high = edges[:-1], edges[1:]

    def seen(first: Tensor, stop: Tensor) -> Tensor:  # (T, blocks) keys of first ≤ k < stop
        return (stop[:, None].minimum(high) - first[:, None].maximum(low)).clamp(min=0)

    counts = seen(a, b) + seen(c, torch.arange(1, length + 1, device=layout.device))
    counts = torch.nn.functional.pad(counts, (0, 0, 0, blocks * BLOCK - length))
    counts = counts.view(blocks, BLOCK, blocks).sum(1)[None, None]
    full = counts == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((counts > 0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(length, length),
    )


def _ranges(layout: Layout, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c (T,) int32 of the module's docstring."""
    a, b, c = [], [], []
    for start, stop, (first, last) in layout.segments:
        q = torch.arange(start, stop)
        reach = q + 1 - (ENDLESS if window is None else window)
        # as distances go, the prefix ends just before `start`
        a.append((reach + last - start).clamp(min=first))
        b.append(torch.full_like(q, last))
        c.append(reach.clamp(min=start))
    lists = [torch.cat(x).to(torch.int32) for x in (a, b, c)]
    return tuple(to_devices(lists, layout.device))  # type: ignore[return-value]


def _listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(…, blocks) how many key blocks are wanted, and (…, blocks, blocks) which, those first."""
    numbers = wanted.to(torch.int32)
    order = numbers.argsort(dim=-1, descending=True, stable=True)
    return numbers.sum(-1, dtype=torch.int32), order.to(torch.int32)
