"""Packing: many sequences in one row, without padding and without seeing one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from comal_fast.model.attention import choose_packed


@dataclass(frozen=True)
class PromptResponse:
    """A prompt and one response to it, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Packed:
    """Sequences in one row. `predictors`: the positions whose next token is a response token."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    segments: list[int]
    predictors: Tensor  # (N,)
    target: Tensor  # (N,) int64
    response_cu_seqlens: Tensor  # (S + 1,) int32, on the CPU


def pack(sequences: Sequence[PromptResponse], device: torch.device) -> Packed:
    """Put the sequences behind one another. Every prompt has at least one token."""
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    target: list[int] = []
    for s in sequences:
        start = len(ids) + len(s.prompt_ids) - 1
        predictors += range(start, start + len(s.response_ids))
        target += s.response_ids
        positions += range(len(s))
        ids += [*s.prompt_ids, *s.response_ids]
    bounds = [0, *accumulate(len(s.response_ids) for s in sequences)]
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        [len(s) for s in sequences],
        torch.tensor(predictors, dtype=torch.int64, device=device),
        torch.tensor(target, dtype=torch.int64, device=device),
        torch.tensor(bounds, dtype=torch.int32),
    )


@contextmanager
def packed_attention(model: Any, requested: str) -> Iterator[None]:
    """Within the block, `model` attends within sequences only."""
    before = model.config._attn_implementation
    model.set_attn_implementation(choose_packed(requested, model.device))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def predictor_states(model: Any, packed: Packed) -> Tensor:
    """(N, H) final hidden states at `packed.predictors`: all that the head needs to see.

    Call it inside `packed_attention`.
    """
    bounds = torch.tensor([0, *accumulate(packed.segments)], dtype=torch.int32)
    bounds = bounds.to(model.device)
    longest = max(packed.segments)
    output = model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        segments=packed.segments,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
    )
    return output.last_hidden_state[0].index_select(0, packed.predictors)


def head_arguments(model: Any) -> dict[str, Any]:
    """`weight`, `bias`, `softcap`, `logit_scale` of the model's head, for comal_kernels."""
    head, config = model.get_output_embeddings(), model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return {
        "weight": head.weight,
        "bias": getattr(head, "bias", None),
        "softcap": getattr(config, "final_logit_softcapping", None),
        "logit_scale": float(scale),
    }


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in order, in runs of at most `budget` tokens (a longer one stands alone)."""
    batches: list[list[int]] = []
    filled = budget + 1
    for index, length in enumerate(lengths):
        if filled + length > budget:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += length
    return batches
