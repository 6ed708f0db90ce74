"""Final hidden states at chosen tokens of many sequences, those of a prompt sharing its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comal_fast.model.packed import packed_attention
from comal_kernels.errors import ModelError
from comal_kernels.integrations.transformers import predictor_states, refuse
from comal_kernels.packing import PromptResponse, pack

Ids = Sequence[int]
_NEXT = (0,)  # stands for the token after the last, which only its predictor counts for


def can_pack(model: Any) -> bool:
    """Whether the packed passes give what the model alone would; others are padded."""
    try:
        refuse(model)
    except ModelError:
        return False
    return True


@torch.inference_mode()
def last_states(model: Any, groups: Sequence[Sequence[Ids]], max_tokens: int) -> Tensor:
    """(S, H) final hidden states at the last token of each sequence, group after group.

    The tokens with which all sequences of a group begin go through a pass once. Every sequence has
    at least one token. `max_tokens`: of a pass, where a sequence alone has not more.
    """
    sequences = [s for group in groups for s in shared(group)]
    return end_states(model, sequences, max_tokens)[1]


@torch.inference_mode()
def end_states(
    model: Any, sequences: Sequence[PromptResponse], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """(S, H) final hidden states at the last token of each one's prompt, and at its very last.

    A sequence's last id stands for the token after it, and does not go through the model.
    """
    first, last = [], []
    for some in passes(sequences, max_tokens):
        if can_pack(model):
            packed = pack(some, model.device)
            bounds = packed.response_cu_seqlens.to(packed.predictors)
            ends = packed.predictors[torch.stack([bounds[:-1], bounds[1:] - 1])].flatten()
            with packed_attention(model, "auto"):
                states = predictor_states(model, replace(packed, predictors=ends))
        else:
            states = _padded_ends(model, some)
        a, b = states.chunk(2)
        first.append(a)
        last.append(b)
    return torch.cat(first), torch.cat(last)


def passes(sequences: Sequence[PromptResponse], max_tokens: int) -> Iterator[list[PromptResponse]]:
    """The sequences in order, in passes of at most `max_tokens`, a prompt counted once in each."""
    some: list[PromptResponse] = []
    prompts: set[object] = set()
    tokens = 0
    for s in sequences:
        more = len(s.inputs) + (0 if s.prompt in prompts else len(s.prompt_ids))
        if some and tokens + more > max_tokens:
            yield some
            some, prompts, tokens = [], set(), 0
            more = len(s.inputs) + len(s.prompt_ids)
        some.append(s)
        prompts.add(s.prompt)
        tokens += more
    if some:
        yield some


def shared(group: Sequence[Ids]) -> list[PromptResponse]:
    """The sequences as responses to the prompt that is their common beginning."""
    rows = [tuple(ids) for ids in group]
    first, last = min(rows), max(rows)  # in order, so that what these share all do
    short = min(len(first), len(last))
    length = next((i for i in range(short) if first[i] != last[i]), short)
    if length == 0:
        return [PromptResponse(row[:1], (*row[1:], *_NEXT)) for row in rows]
    return [split(row, length) for row in rows]


def split(ids: Ids, length: int) -> PromptResponse:
    """A sequence whose first `length` ≥ 1 tokens are its prompt."""
    return PromptResponse(tuple(ids[:length]), (*ids[length:], *_NEXT))


@dataclass(frozen=True)
class Encoded:
    """A row for a padded batch: its ids, and which text each is of where the model is told."""

    ids: Ids
    types: Ids | None = None

    @classmethod
    def of(cls, encoding: Any) -> Encoded:
        """What a tokenizer made."""
        return cls(encoding["input_ids"], encoding.get("token_type_ids"))


@torch.inference_mode()
def padded(
    model: Any, rows: Sequence[Encoded], max_tokens: int, read: Callable[[Any, Tensor], Tensor]
) -> np.ndarray:
    """What `read` makes of the model's output and a batch's ids, (n, …), in the order of `rows`.

    Rows of like length go together. `max_tokens`: of a batch, padding counted; a model without a
    padding token takes rows alone.
    """
    pad = model.config.pad_token_id
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    results: dict[int, np.ndarray] = {}
    batch: list[int] = []
    for place, number in enumerate(order):
        batch.append(number)
        after = order[place + 1] if place + 1 < len(order) else None
        if after is None or pad is None or (len(batch) + 1) * len(rows[after].ids) > max_tokens:
            ids, mask = pad_rows([rows[i].ids for i in batch], pad or 0, model.device)
            given = {"input_ids": ids, "attention_mask": mask}
            if rows[number].types is not None:
                types = [rows[i].types or () for i in batch]
                given["token_type_ids"] = pad_rows(types, 0, model.device)[0]
            values = read(model(**given), ids).cpu().numpy()
            results |= dict(zip(batch, values, strict=True))
            batch = []
    return np.stack([results[i] for i in range(len(rows))])


def pad_rows(rows: Sequence[Ids], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, longest) ids and mask, padded on the right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


def _padded_ends(model: Any, sequences: Sequence[PromptResponse]) -> Tensor:
    """(2S, H) states at the prompts' ends, then at the very last tokens: causal, so padding after
    them is not seen."""
    rows = [(*s.prompt_ids, *s.inputs) for s in sequences]
    ids, mask = pad_rows(rows, 0, model.device)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    which = torch.arange(len(rows), device=states.device)
    ends = [torch.tensor([len(s.prompt_ids) - 1 for s in sequences])]
    ends.append(torch.tensor([len(row) - 1 for row in rows]))
    return torch.cat([states[which, end.to(states.device)] for end in ends])
