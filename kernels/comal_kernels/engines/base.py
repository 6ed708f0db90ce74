"""What a backend offers: log-probs of some rows, and gradients from the logits still held."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from comal_kernels.head import Head


class Engine(Protocol):
    """One pass over a head: at most `capacity` rows of logits, and the sums of dW and dbias."""

    capacity: int  # most rows that `load` takes
    logp_rows: int  # most rows that `logp` takes

    def logp(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, H), target (n,) → log-prob and log-sum-exp, each (n,) float32; keeps no logits."""
        ...

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None = None) -> Tensor | None:
        """Hold the logits of x (n, H); returns log-probs (n,), or None where lse is known."""
        ...

    def backward(self, coef: Tensor) -> Tensor | None:
        """coef (n,): d loss / d logp of the rows held. Adds to dW and dbias; returns dx (n, H).

        dx is None where the hidden states need no gradient. The logits held are used up.
        """
        ...

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        """dW (V, H) and dbias (V,) in the parameters' dtypes, None where not needed."""
        ...

    def reader(self, head: Head) -> Engine:
        """An engine for `logp` alone of a head over the same vocabulary, in this one's memory."""
        ...
