"""From a padded batch to what the losses take: the states that predict responses, end to end."""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.checks import refuse


def pack_responses(hidden: Tensor, mask: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a padded batch that predict a response's tokens: (hidden, target, cu_seqlens).

    Args:
        hidden: (B, L, H), a model's last hidden states of `ids`; padding on either side.
        mask: (B, L), true or 1 at the tokens that count, the responses'; anywhere in a row.
        ids: (B, L) int64.

    Returns:
        hidden (T, H), the state before each token that counts, differentiable; target (T,), those
        tokens; cu_seqlens (B + 1,) int32, where each sequence begins. As `linear_logprob` and
        `prox_loss` take them: nothing is left to shift.

    Raises ValueError where shapes don't fit, or a sequence's first token counts, which no state
    predicts. On a GPU it waits for the counts.
    """
    if hidden.dim() != 3:
        refuse("hidden", f"shape {tuple(hidden.shape)}", "(B, L, H)")
    for name, x in (("mask", mask), ("ids", ids)):
        if x.shape != hidden.shape[:2]:
            refuse(name, f"shape {tuple(x.shape)}", f"(B, L) = {tuple(hidden.shape[:2])}")
    counts = mask.to(hidden.device, torch.bool)
    if bool(counts[:, :1].any()):
        at = int(counts[:, 0].nonzero()[0])
        refuse("mask", f"the first token of sequence {at} counts", "a token before it, a prompt's")
    counts = counts[:, 1:]
    cu_seqlens = torch.zeros(len(ids) + 1, dtype=torch.int32)
    cu_seqlens[1:] = counts.sum(1).cumsum(0)
    return hidden[:, :-1][counts], ids.to(hidden.device)[:, 1:][counts], cu_seqlens
