"""TRL's metrics of a batch, from sums that ranks add up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STATISTICS = ("entropy", "mean_logit", "top1")  # of linear_logprob, for TRL's names of them


def batch_sums(rewards: Tensor, logp: Tensor, statistics: Tensor, tokens: Tensor) -> Tensor:
    """(15,) float64 on their device: what `named_means` reads, in one tensor.

    rewards, logp: (2 B,) of the chosen, then of the rejected responses. statistics (4, 2 B): their
    tokens, and sums over these of STATISTICS. tokens (): of the batch, prompts repeated.
    """
    chosen, rejected = rewards.chunk(2)
    by_side = torch.stack([rewards, logp, *statistics]).view(6, 2, -1).sum(-1)
    pairs = torch.full_like(by_side[0, 0], len(chosen))
    more = torch.stack([(chosen > rejected).sum().to(logp), pairs, tokens.to(logp)])
    return torch.cat([by_side.flatten(), more]).double()


def named_means(total: list[float]) -> dict[str, float]:
    """TRL's metrics by name, of `batch_sums` added up over ranks; 0 of a side without tokens."""
    (reward, logp, tokens, entropy, logit, hits), rest = np.reshape(total[:12], (6, 2)), total[12:]
    gained, pairs, _ = rest
    counts = np.maximum(tokens, 1.0)
    values = {
        "entropy": entropy.sum() / max(tokens.sum(), 1.0),
        "logits/chosen": logit[0] / counts[0],
        "logits/rejected": logit[1] / counts[1],
        "mean_token_accuracy": hits[0] / counts[0],
        "rewards/chosen": reward[0] / pairs,
        "rewards/rejected": reward[1] / pairs,
        "rewards/accuracies": gained / pairs,
        "rewards/margins": (reward[0] - reward[1]) / pairs,
        "logps/chosen": logp[0] / pairs,
        "logps/rejected": logp[1] / pairs,
    }
    return {name: float(value) for name, value in values.items()}
