"""The same function in plain torch with full logits: what the chunked paths must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_logprob(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,) int64
    *,
    bias: Tensor | None = None,  # (V,)
    cu_seqlens: Tensor | None = None,  # (S + 1,)
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # (T,) or (S,)
    """What `linear_logprob` gives, in `dtype`; gradients by autograd, in the inputs' dtypes."""
    z = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        z = z + bias.to(dtype)
    z = z * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / temperature
    kept = target != ignore_index
    picked = torch.log_softmax(z, -1).gather(1, torch.where(kept, target, 0)[:, None])[:, 0]
    logp = torch.where(kept, picked, 0.0)
    if cu_seqlens is None:
        return logp
    bounds = cu_seqlens.tolist()
    parts = [logp[a:b].sum() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.stack(parts) if parts else logp.new_zeros(0)
