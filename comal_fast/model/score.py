"""Final hidden states at the last token of many sequences, those of a prompt sharing its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from comal_fast.errors import InputError
from comal_fast.model.attention import refuse
from comal_fast.model.packed import PromptResponse, pack, packed_attention, predictor_states

Ids = Sequence[int]
_NEXT = (0,)  # stands for the token after the last, which only its predictor counts for


def can_pack(model: Any) -> bool:
    """Whether `last_states` gives what the model alone would: a causal decoder, its head `score`.

    Others go through in padded batches.
    """
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        return False
    try:
        refuse(model)
    except InputError:
        return False
    return True


@torch.inference_mode()
def last_states(model: Any, groups: Sequence[Sequence[Ids]], attention: str = "auto") -> Tensor:
    """(S, H) final hidden states at the last token of each sequence, group after group.

    The tokens with which all sequences of a group begin go through the model once. Every sequence
    has at least one token. `attention`: as `model.attn_implementation`.
    """
    sequences = [s for group in groups for s in shared(group)]
    packed = pack(sequences, model.device)
    last = packed.response_cu_seqlens[1:].to(packed.predictors) - 1
    with packed_attention(model, attention):
        return predictor_states(model, replace(packed, predictors=packed.predictors[last]))


def shared(group: Sequence[Ids]) -> list[PromptResponse]:
    """The sequences as responses to the prompt that is their common beginning."""
    rows = [tuple(ids) for ids in group]
    first, last = min(rows), max(rows)  # in order, so that what these share all do
    short = min(len(first), len(last))
    length = next((i for i in range(short) if first[i] != last[i]), short)
    if length == 0:
        return [PromptResponse(row[:1], (*row[1:], *_NEXT)) for row in rows]
    return [PromptResponse(row[:length], (*row[length:], *_NEXT)) for row in rows]
