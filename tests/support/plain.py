"""The plain model, one response at a time: what packing must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from comal_fast.model.packed import PromptResponse, head_arguments, pack, predictor_states
from comal_kernels import linear_logprob


def plain_logp(model: Any, sequence: PromptResponse) -> Tensor:
    """() float64, from the whole logits."""
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
    logp = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
    start = len(sequence.prompt_ids) - 1
    positions = range(start, start + len(sequence.response_ids))
    return logp[positions, list(sequence.response_ids)].sum()


def plain_logps(model: Any, sequences: Sequence[PromptResponse]) -> Tensor:
    """(S,) float64, without gradients."""
    with torch.inference_mode():
        return torch.stack([plain_logp(model, s) for s in sequences])


def packed_logps(model: Any, sequences: Sequence[PromptResponse]) -> Tensor:
    """(S,) float32 of one packed pass, with gradients; inside `packed_attention`."""
    packed = pack(sequences, model.device)
    return linear_logprob(
        predictor_states(model, packed),
        target=packed.target,
        cu_seqlens=packed.response_cu_seqlens,
        **head_arguments(model),
    )


def gradients(model: Any, backward: Callable[[], object]) -> dict[str, Tensor]:
    """Of every parameter, after `backward`."""
    model.zero_grad()
    backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


def plain_gradients(
    model: Any, sequences: Sequence[PromptResponse], weights: Tensor
) -> dict[str, Tensor]:
    """Of Σ weights · log-probs."""

    def backward() -> None:
        for s, weight in zip(sequences, weights, strict=True):
            (weight * plain_logp(model, s)).backward()

    return gradients(model, backward)


def relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The worst parameter's, by norms."""
    return max(float((found[n] - w).norm() / w.norm()) for n, w in wanted.items())
