"""Log-probs of responses under a model, without gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from comal_fast.errors import InputError
from comal_fast.model.head import head_arguments
from comal_fast.model.packed import packed_attention
from comal_fast.system.allocator import give_back
from comal_fast.system.faults import is_out_of_memory
from comal_kernels import linear_logprob
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, fill_bins, pack


def response_logps(
    model: Any,
    sequences: Sequence[PromptResponse],
    *,
    max_tokens: int,
    attn_implementation: str = "auto",
    backend: str = "auto",
    advance: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """(S,) float64: sum of the log-probs of each response's tokens, in nats.

    Sequences run through the model packed, at most `max_tokens` tokens at a time; `advance` is
    told the tokens that went through it.
    """
    return joint_logps(
        [model],
        sequences,
        max_tokens=max_tokens,
        attn_implementation=attn_implementation,
        backend=backend,
        advance=advance,
    )[0]


@torch.inference_mode()
def joint_logps(
    models: Sequence[Any],
    sequences: Sequence[PromptResponse],
    *,
    max_tokens: int,
    attn_implementation: str = "auto",
    backend: str = "auto",
    advance: Callable[[int], None] = lambda tokens: None,
    part: tuple[int, int] = (0, 1),
    done: Mapping[int, list[list[float]]] | None = None,
    keep: Callable[[Mapping[int, list[list[float]]]], None] = lambda values: None,
) -> np.ndarray:
    """(M, S) float64: `response_logps` under each of M models that share one head.

    Each batch goes through every model, and once through the head for all of them. `part` (r, n):
    only every n-th of the passes from the r-th on; 0 elsewhere. `done`: the values of passes, by
    their numbers, that are not to be run again; `keep` is told those of each that is.
    """
    result = np.zeros((len(models), len(sequences)))
    head = head_arguments(models[0])
    if any(m.get_output_embeddings().weight is not head["weight"] for m in models):
        raise ValueError("models: each has a head of its own; together they need one in common")
    device = models[0].device
    with ExitStack() as attention:
        for model in models:
            attention.enter_context(packed_attention(model, attn_implementation))
        passes = _passes(sequences, max_tokens)
        for number, known in (done or {}).items():
            result[:, passes[number]] = known
        left = [number for number in range(len(passes)) if number not in (done or {})]
        for number in left[part[0] :: part[1]]:
            numbers = passes[number]
            some = [sequences[i] for i in numbers]
            values = _values(models, head, some, device, backend)
            result[:, numbers] = values
            keep({number: values.tolist()})
            advance(passed_tokens(some, sys.maxsize))
    return result


def _values(
    models: Sequence[Any],
    head: dict[str, Any],
    sequences: list[PromptResponse],
    device: torch.device,
    backend: str,
) -> np.ndarray:
    """(M, S) float64 of one pass; of two halves one after the other where memory runs out."""
    try:
        packed = pack(sequences, device)
        bounds, tokens = packed.response_cu_seqlens, len(packed.target)
        logp = linear_logprob(
            torch.cat([predictor_states(model, packed) for model in models]),
            target=packed.target.repeat(len(models)),
            cu_seqlens=torch.cat(
                [bounds[:1], *(bounds[1:] + i * tokens for i in range(len(models)))]
            ),
            backend=backend,
            **head,
        )
        values: np.ndarray = logp.double().cpu().numpy().reshape(len(models), -1)
        return values
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(sequences) == 1:
            raise InputError(
                f"out of memory, and a pass holds a single response of {len(sequences[0].inputs)} "
                "tokens already; `comal-fast plan` says what fits"
            ) from None
    give_back(device)
    half = len(sequences) // 2
    parts = (sequences[:half], sequences[half:])
    return np.hstack([_values(models, head, part, device, backend) for part in parts])


def passed_tokens(sequences: Sequence[PromptResponse], max_tokens: int) -> int:
    """Tokens that go through the model in all, as `advance` is told them."""
    return sum(
        sum({sequences[i].prompt: len(sequences[i].prompt_ids) for i in numbers}.values())
        + sum(len(sequences[i].inputs) for i in numbers)
        for numbers in _passes(sequences, max_tokens)
    )


def _passes(sequences: Sequence[PromptResponse], max_tokens: int) -> list[list[int]]:
    """Numbers of the sequences that go through the model together."""
    every = range(len(sequences))
    return fill_bins([[i] for i in every], dict(enumerate(sequences)), max_tokens)
