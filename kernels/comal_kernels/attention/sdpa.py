"""A call of SDPA per segment: Σ queries · keys, never a mask over the row. The CPU's engine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from comal_kernels.attention.layout import Layout, Options, Segment


def sdpa(query: Tensor, key: Tensor, value: Tensor, layout: Layout, options: Options) -> Tensor:
    """An engine: attention a segment at a time, soft-capped logits computed in plain torch."""
    parts = []
    for segment in layout.segments:
        q = query[:, :, segment.start : segment.stop]
        k, v = _keys(key, segment), _keys(value, segment)
        if options.softcap is not None:
            parts.append(_softcapped(q, k, v, _mask(segment, layout, options, q.dtype), options))
            continue
        within = options.window is None or segment.keys <= options.window
        causal = within and segment.keys == segment.queries
        mask = None if causal else _mask(segment, layout, options, q.dtype)
        parts.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=options.dropout,
                is_causal=causal,
                scale=options.scale,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _keys(x: Tensor, segment: Segment) -> Tensor:
    own = x[:, :, segment.start : segment.stop]
    if segment.keys == segment.queries:
        return own
    return torch.cat([x[:, :, slice(*segment.prefix)], own], dim=2)


def _mask(segment: Segment, layout: Layout, options: Options, dtype: torch.dtype) -> Tensor:
    """(queries, keys): 0 where a query sees a key, −∞ elsewhere."""
    queries, keys, window = segment.queries, segment.keys, options.window

    def make() -> Tensor:
        q = torch.arange(keys - queries, keys, device=layout.device)[:, None]
        k = torch.arange(keys, device=layout.device)
        hidden = k > q
        if window is not None:
            hidden |= k <= q - window
        return torch.zeros(hidden.shape, dtype=dtype, device=layout.device).masked_fill_(
            hidden, -torch.inf
        )

    return layout.once(("sdpa", queries, keys, window, dtype), make)


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: Options) -> Tensor:
    assert options.softcap is not None
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = options.softcap * torch.tanh(q @ k.mT * options.scale / options.softcap)
    shares = torch.softmax(logits + mask, -1, dtype=torch.promote_types(q.dtype, torch.float32))
    return F.dropout(shares.to(q.dtype), options.dropout) @ v
