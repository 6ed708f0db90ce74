"""What a contender of the head is, and one that can't run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.problem import DPO, Leaves, Problem

FLOOR = "floor"  # in rows: the plain products, which no contender can do without


@dataclass(frozen=True)
class Contender:
    """One way to a loss from hidden states and head. Of several variants the fastest counts."""

    name: str
    loss: Callable[[Problem, Leaves], Tensor]
    variant: str = ""
    objective: str = DPO  # which of OBJECTIVES it computes: its result is checked against that
    exact: bool = True  # False: leaves small gradients out on purpose
    bounded: bool = True  # its memory beyond inputs and gradients does not grow as T · V

    def text(self) -> dict[str, Any]:
        """What a record says of it."""
        names = ("name", "variant", "objective", "exact", "bounded")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Missing:
    """A contender that can't run here, and why."""

    name: str
    why: str
