"""What every preference oracle looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """Responses to one prompt: every one of `left` is to be compared with every one of `right`."""

    prompt: str
    left: Sequence[str]
    right: Sequence[str]


class Oracle(ABC):
    """P(y ≻ y' | x), with P(y≻y') + P(y'≻y) = 1."""

    sees_order: ClassVar[bool] = False  # True: asked in both orders, and averaged

    @abstractmethod
    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """One (len(left), len(right)) float64 matrix of P(left ≻ right) each, in order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever a judgement could."""


def self_comparison(prompt: str, responses: Sequence[str]) -> Comparison:
    """All K responses against each other."""
    return Comparison(prompt, responses, responses)
