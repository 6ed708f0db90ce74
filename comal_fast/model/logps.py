"""Log-probs of responses under a model, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from comal_fast.model.head import head_arguments
from comal_fast.model.packed import packed_attention
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
        for number, values in (done or {}).items():
            result[:, passes[number]] = values
        left = [number for number in range(len(passes)) if number not in (done or {})]
        for number in left[part[0] :: part[1]]:
            numbers = passes[number]
            packed = pack([sequences[i] for i in numbers], device)
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
            values = logp.double().cpu().numpy().reshape(len(models), -1).tolist()
            result[:, numbers] = values
            keep({number: values})
            advance(packed.tokens)
    return result


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
