"""More than log-probs of a head's logits, and the gradients of all of it, in one pass each way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Of n rows of logits z with p = softmax(z), each (n,) where nothing else is said."""

    logp: Tensor  # log p[target]
    lse: Tensor  # log Σ exp z
    entropy: Tensor  # −Σ p log p
    mean_logit: Tensor  # Σ z / V
    top1: Tensor  # bool: the target is the likeliest word, of equals the first
    topk: Tensor  # (n, k) log-probs of the likeliest words, descending
    topk_ids: Tensor  # (n, k) int64
    rest: Tensor  # (n,) what rounding took from lse: probabilities are relative to all of it


def from_sums(
    picked: Tensor,  # (n,) z[target]
    top: Tensor,  # (n,) max z
    total: Tensor,  # (n,) float64: Σ exp(z − top)
    weighted: Tensor,  # (n,) float64: Σ exp(z − top) (z − top)
    mean: Tensor,  # (n,) Σ z / V
    top1: Tensor,  # (n,) bool
    values: Tensor,  # (n, k) the largest z
    ids: Tensor,  # (n, k)
    dtype: torch.dtype,
) -> Statistics:
    """`Statistics` in `dtype` of rows whose sums are known: differences of what is large first."""
    log = total.log()
    lse = log + top
    return Statistics(
        logp=((picked - top) - log).to(dtype),
        lse=lse.to(dtype),
        entropy=(log - weighted / total).to(dtype),
        mean_logit=mean.to(dtype),
        top1=top1,
        topk=((values - top[:, None]) - log[:, None]).to(dtype),
        topk_ids=ids,
        rest=(lse - lse.to(dtype)).to(dtype),
    )


@dataclass(frozen=True)
class Slopes:
    """d loss / d of each of the above, None where it is 0 throughout."""

    logp: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    mean_logit: Tensor | None = None
    topk: Tensor | None = None  # (n, k)


class StatisticsEngine(Protocol):
    """What a backend offers of them: for some rows at a time, and the sums of dW and dbias."""

    capacity: int  # most rows that `differentiate` takes
    logp_rows: int  # most rows that `statistics` takes

    def statistics(self, x: Tensor, target: Tensor, k: int) -> Statistics:
        """x (n, H), target (n,): all of them; keeps no logits. k ≥ 0 likeliest words."""
        ...

    def differentiate(
        self, x: Tensor, target: Tensor, found: Statistics, by: Slopes
    ) -> Tensor | None:
        """d loss / d x (n, H) of what `statistics` found, None where not needed.

        Adds to dW and dbias. d logp = 1[target] − p, d lse = p, d entropy = −p (log p + entropy),
        d mean_logit = 1 / V.
        """
        ...

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        """dW (V, H) and dbias (V,) in the parameters' dtypes, None where not needed."""
        ...
