"""What a contender is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.problem import DPO, Leaves, Problem


@dataclass(frozen=True)
class Where:
    """What the contenders will be asked to do."""

    device: torch.device
    dtype: torch.dtype
    vocab: int

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Contender:
    """One way to a loss from hidden states and head. Of several variants the fastest counts."""

    name: str
    loss: Callable[[Problem, Leaves], Tensor]
    variant: str = ""
    objective: str = DPO  # which of OBJECTIVES it computes: its result is checked against that
    exact: bool = True  # False: leaves small gradients out on purpose
    bounded: bool = True  # its memory beyond inputs and gradients does not grow as T · V

    @property
    def title(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class Missing:
    """A contender that can't run here, and why."""

    name: str
    why: str
