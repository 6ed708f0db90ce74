"""What a trainer is given, and how it takes its turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.pairs import Pairs

LEARNING_RATE = 5e-7
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Task:
    """AdamW on the DPO loss of `pairs`, all of them in each optimiser step."""

    model: Any
    pairs: Pairs
    micro_pairs: int  # most pairs of one forward and backward pass
    checkpointing: bool  # recompute activations in the backward pass


class Turn(Protocol):
    """Trainers take turns, so that a slow minute of the machine hits all."""

    def wait(self) -> None:
        """Return when it is this trainer's turn; then its clock starts."""

    def done(self, loss: float, grad_norm: float) -> None:
        """Stop the clock, and say what the step gave."""


Train = Callable[[Task, Turn], None]  # steps until its process is ended
