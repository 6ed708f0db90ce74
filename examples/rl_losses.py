"""Importance-ratio losses on `linear_logprob`, without logits: PPO's clip as in GRPO, and GSPO.

Of a batch of responses: hidden states (B, L, H) that predict `target` (B, L), −100 where nothing
counts (prompt, padding), the log-probs (B, L) under the policy that sampled, advantages (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels import linear_logprob


def grpo_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, old_logp: Tensor, advantage: Tensor,
    clip: float = 0.2, entropy_bonus: float = 0.0,
) -> Tensor:  # fmt: skip
    """Clipped ratios of tokens (PPO, arXiv 1707.06347, eq. 7), averaged over each response, as
    GRPO does (arXiv 2402.03300)."""
    out = linear_logprob(hidden, weight, target, outputs=("logp", "entropy"))
    counts = target != -100
    ratio = (out.logp - old_logp).exp()
    a = advantage[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    each = torch.where(counts, gain + entropy_bonus * out.entropy, 0.0)
    return -(each.sum(1) / counts.sum(1).clamp(min=1)).mean()


def gspo_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, old_logp: Tensor, advantage: Tensor,
    clip: float = 3e-4,
) -> Tensor:  # fmt: skip
    """One clipped ratio a response, of the mean log-probs (GSPO, arXiv 2507.18071)."""
    counts = target != -100
    logp = linear_logprob(hidden, weight, target, reduction="mean")
    old = torch.where(counts, old_logp, 0.0).sum(1) / counts.sum(1).clamp(min=1)
    ratio = (logp - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()
