"""What packing must equal: the plain model, one response at a time; a plain attention kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from comal_fast.model.head import head_arguments
from comal_kernels import linear_logprob
from comal_kernels.attention import Options
from comal_kernels.attention.varlen import Bounds
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack


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


def plain_kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """What flash-attn's documentation says of its variable-length function, a loop."""
    assert not options.dropout
    out = []
    starts = zip(bounds.cu_q.tolist(), bounds.cu_k.tolist(), strict=True)
    edges = list(starts)
    for (q0, k0), (q1, k1) in zip(edges[:-1], edges[1:], strict=True):
        n, m = q1 - q0, k1 - k0
        assert 0 < n <= bounds.max_q and m <= bounds.max_k
        groups = q.shape[1] // k.shape[1]
        kk, vv = (x[k0:k1].repeat_interleave(groups, 1) for x in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q[q0:q1], kk) * options.scale
        if options.softcap is not None:
            logits = options.softcap * torch.tanh(logits / options.softcap)
        i = torch.arange(n)[:, None] + m - n  # bottom right
        j = torch.arange(m)
        seen = j <= i
        if options.window is not None:
            seen &= j >= i - (options.window - 1)
        shares = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", shares, vv))
    return torch.cat(out)
