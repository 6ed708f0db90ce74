"""Log-probs of responses under a model, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from comal_fast.model.packed import (
    PromptResponse,
    head_arguments,
    pack,
    packed_attention,
    predictor_states,
    token_budget_batches,
)
from comal_kernels import linear_logprob


@torch.inference_mode()
def response_logps(
    model: Any,
    sequences: Sequence[PromptResponse],
    *,
    max_tokens: int,
    attn_implementation: str = "auto",
    backend: str = "auto",
    advance: Callable[[int], None] = lambda tokens: None,
    share: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """(S,) float64: sum of the log-probs of each response's tokens, in nats.

    Sequences run through the model packed, at most `max_tokens` tokens at a time; `advance` is
    told the tokens done. `share` (r, n): only the passes whose number is r modulo n; 0 elsewhere.
    """
    result = np.zeros(len(sequences))
    head = head_arguments(model)
    with packed_attention(model, attn_implementation):
        batches = token_budget_batches([len(s) for s in sequences], max_tokens)
        for batch in batches[share[0] :: share[1]]:
            packed = pack([sequences[i] for i in batch], model.device)
            hidden = predictor_states(model, packed)
            logp = linear_logprob(
                hidden,
                target=packed.target,
                cu_seqlens=packed.response_cu_seqlens,
                backend=backend,
                **head,
            )
            result[batch] = logp.double().cpu().numpy()
            advance(sum(packed.segments))
    return result
