"""What a trainer is given, and how it takes its turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bench.pairs import Pairs

# so small that no weight changes: whoever trains next in a process has the same model
LEARNING_RATE = 1e-12
MAX_GRAD_NORM = 1.0

Recompute = Literal["auto", "all", "none"]


@dataclass(frozen=True)
class Mode:
    """A setting of a trainer that does not change what it computes.

    Attributes:
        micro_pairs: Most pairs of one forward and backward pass.
        recompute: Layers whose activations are made again in the backward pass: all, none, or
            `auto`, as many as the device's memory asks for (only our trainer can tell).
        liger: The layers run Liger's kernels, on CUDA where that package is installed.
        fuse_residual: With these, a layer's residual is added in the kernel of its norm.
    """

    micro_pairs: int
    recompute: Recompute = "auto"
    liger: bool = True
    fuse_residual: bool = True

    @property
    def text(self) -> str:
        """The mode in a few words, for a table."""
        pairs = f"{self.micro_pairs} pairs a pass"
        liger = "off" if not self.liger else "on" if self.fuse_residual else "on, residual apart"
        return f"{pairs}, recompute {self.recompute}, Liger {liger}"


@dataclass(frozen=True)
class Task:
    """AdamW on the DPO loss of `pairs`, all of them in each optimiser step."""

    model: Any
    pairs: Pairs
    mode: Mode


class Turn(Protocol):
    """Trainers take turns, so that a slow minute of the machine hits all."""

    def wait(self) -> None:
        """Return when it is this trainer's turn; then its clock starts."""

    def done(self, loss: float, grad_norm: float) -> None:
        """Stop the clock, and say what the step gave."""


class Finished(Exception):
    """A turn raises it where no step is wanted any more, and the trainer lets it through."""


Train = Callable[[Task, Turn], None]  # takes steps until its turn raises Finished
