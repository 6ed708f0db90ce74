"""What happens between the head's product and the softmax, and how big a chunk of logits may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIB = 1 << 20
ALIGNED_ROWS = 16  # 64 bytes of float32: a CPU's product is a third slower into odd rows
DEFAULT_WORKSPACE = {"cpu": 128 * MIB, "cuda": 1024 * MIB}


@dataclass(frozen=True)
class Head:
    """Logits are tanh-capped and tempered in this order, the order of the models that define each.

    z = (softcap · tanh((hidden Wᵀ + bias) · logit_scale / softcap)) / temperature
    (Cohere's `logit_scale` multiplies the product; Gemma 2's `final_logit_softcapping` follows;
    the sampling temperature divides last. Granite divides by `logits_scaling`: pass its inverse.)
    """

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    logit_scale: float = 1.0
    temperature: float = 1.0

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


def chunk_rows(workspace: int | None, vocab: int, itemsize: int, device: torch.device) -> int:
    """Rows of logits that fit in `workspace` bytes, in whole lines of cache: at least one."""
    budget = DEFAULT_WORKSPACE.get(device.type, 128 * MIB) if workspace is None else workspace
    rows = max(1, budget // (vocab * itemsize))
    return rows if rows < ALIGNED_ROWS else rows - rows % ALIGNED_ROWS


def aligned(rows: int) -> int:
    """The next multiple of a line of cache, where there is at least one."""
    return rows if rows < ALIGNED_ROWS else -(-rows // ALIGNED_ROWS) * ALIGNED_ROWS
