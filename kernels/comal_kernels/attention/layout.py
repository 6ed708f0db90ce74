"""Who attends to whom in a packed row."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Segment(NamedTuple):
    """The positions start ≤ i < stop, which see all of `prefix` and, causally, themselves.

    `prefix` is a range of earlier positions of the row. Prefix and segment are one sequence, so
    the distance between two positions is that within their concatenation.
    """

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)

    @property
    def queries(self) -> int:
        """How many positions are its own."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """How many positions its last one sees."""
        return self.prefix[1] - self.prefix[0] + self.queries


@dataclass(frozen=True, eq=False)
class Layout:
    """Segments that cover a row, in order; one object a pass through the model."""

    segments: list[Segment]
    device: torch.device
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives: called for the first layer that asks, remembered for the others.

        Tensors made in inference mode serve a pass with gradients too.
        """
        if key not in self._made:
            with torch.inference_mode(False):
                self._made[key] = make()
        return self._made[key]


class Options(NamedTuple):
    """What a layer asks of its attention."""

    scale: float
    softcap: float | None = None  # c: the logits x become c · tanh(x/c)
    window: int | None = None  # how many keys a query sees at most, its own included
    dropout: float = 0.0


# query (1, heads, T, D), key and value (1, kv_heads, T, D) → (1, T, heads, D)
Engine = Callable[[Tensor, Tensor, Tensor, Layout, Options], Tensor]
