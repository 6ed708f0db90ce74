"""A head: its weight, and what happens between its product and the softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Logits are tanh-capped and tempered in this order, the order of the models that define each.

    z = (softcap · tanh((hidden Wᵀ + bias) · logit_scale / softcap)) / temperature
    (Cohere's `logit_scale` multiplies the product; Gemma 2's `final_logit_softcapping` follows;
    the sampling temperature divides last. Granite divides by `logits_scaling`: pass its inverse.)
    """

    SCHEMA: ClassVar[str] = (
        "Tensor weight, Tensor? bias, float? softcap, float logit_scale, float temperature"
    )

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    logit_scale: float = 1.0
    temperature: float = 1.0

    def flat(self) -> tuple[Tensor, Tensor | None, float | None, float, float]:
        """As custom ops take it, in the order of SCHEMA; `Head(*flat)` is the inverse."""
        return self.weight, self.bias, self.softcap, self.logit_scale, self.temperature

    def over(self, weight: Tensor, bias: Tensor | None) -> Head:
        """The head of another weight (V, H') and bias (V,) under the same cap and factors."""
        return replace(self, weight=weight, bias=bias)

    @property
    def inner(self) -> float:
        """Factor on the product before the tanh, or before the softmax where there is no cap."""
        return self.logit_scale / (self.softcap or self.temperature)

    @property
    def outer(self) -> float:
        """Factor on the tanh; 1 where there is no cap."""
        return self.softcap / self.temperature if self.softcap else 1.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits, reductions and gradient accumulators: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
