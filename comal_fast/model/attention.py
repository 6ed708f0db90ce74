"""Exact attention over packed sequences, as an entry of transformers' attention interface.

Plain SDPA over a packed row lets a response see its neighbours. This entry calls SDPA once per
sequence, so it costs Σ tᵢ² and needs no mask; on CUDA with flash-attn installed, transformers'
own `flash_attention_2` does the same from `cu_seq_lens_*` in one kernel.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

PACKED = "comal_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, T, D)
    key: Tensor,  # (1, kv_heads, T, D)
    value: Tensor,  # (1, kv_heads, T, D)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    segments: list[int],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of `segments` (lengths that sum to T). Returns (1, T, heads, D).

    Raises ValueError for what it can't do exactly: logit soft-capping, sinks, sliding windows.
    """
    for option, name in (("softcap", "attention soft-capping"), ("s_aux", "attention sinks")):
        if kwargs.get(option) is not None:
            raise ValueError(f"packed attention can't do {name}; {type(module).__name__} needs it")
    window = kwargs.get("sliding_window")
    if window is not None and max(segments) > window:
        raise ValueError(
            f"packed attention has no sliding window ({window}); a sequence has {max(segments)} "
            "tokens; lower data.max_length"
        )
    parts = [
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True
        )
        for q, k, v in zip(*(x.split(segments, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def choose_packed(requested: str, device: torch.device) -> str:
    """The implementation of packed passes that `model.attn_implementation` means on `device`."""
    flash = importlib.util.find_spec("flash_attn") is not None
    if requested == "flash_attention_2" and not (flash and device.type == "cuda"):
        raise ValueError(
            "model.attn_implementation: flash_attention_2 needs CUDA and the package flash-attn"
        )
    if requested == "auto" and flash and device.type == "cuda":
        return "flash_attention_2"
    return PACKED if requested in ("auto", "sdpa") else requested


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
