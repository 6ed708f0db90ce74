"""A preference game that the tiny model can play: the first letter of a response is its move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from comal_fast.oracles import Comparison, Oracle

CYCLIC = ((0.5, 0.95, 0.05), (0.05, 0.5, 0.95), (0.95, 0.05, 0.5))
ORDERED = ((0.5, 0.9, 0.9), (0.1, 0.5, 0.9), (0.1, 0.1, 0.5))
POISONED = tuple(tuple(1 - p for p in row) for row in ORDERED)


class FirstLetter(Oracle):
    """P by the class of the first character, its code point modulo the size of the matrix."""

    def __init__(self, matrix: Sequence[Sequence[float]]) -> None:
        self.matrix = np.array(matrix)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        for item in comparisons:
            left, right = (
                [ord(text[0]) % len(self.matrix) if text else 0 for text in side]
                for side in (item.left, item.right)
            )
            yield self.matrix[np.ix_(left, right)]

    def fingerprint(self) -> str:
        return f"first letter {self.matrix.tolist()}"


def play(
    monkeypatch: pytest.MonkeyPatch,
    judge: Sequence[Sequence[float]],
    evaluate: Sequence[Sequence[float]] | None = None,
) -> None:
    """Judge the training samples by one matrix, and the held-out ones by it or by another."""
    for phase, matrix in (("judge", judge), ("evaluate", evaluate or judge)):
        oracle = FirstLetter(matrix)
        monkeypatch.setattr(f"comal_fast.phases.{phase}.make_oracle", lambda *_, o=oracle: o)
