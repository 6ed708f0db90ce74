"""Position bias: an oracle that sees which response comes first is asked in both orders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from comal_fast.oracles.base import Comparison, Oracle


class BothOrders(Oracle):
    """P(y ≻ y') = ½ (P(first ≻ second | y, y') + 1 − P(first ≻ second | y', y)).

    What is left of an oracle when the place of a response no longer counts; P + Pᵀ = 1 holds again.
    Asks twice as often. (Both orders averaged: COMAL, arXiv 2410.23223v1, for its pairwise judge.)
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle, self.is_model = oracle, oracle.is_model

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the (len(left), len(right)) float64 mean of both orders for each, in order."""

        def both() -> Iterator[Comparison]:
            for item in comparisons:
                yield item
                yield Comparison(item.messages, item.right, item.left)

        answers = self.oracle.compare(both())
        for first, second in zip(answers, answers, strict=True):
            yield (first + 1 - second.T) / 2

    def first_wins(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the oracle's own matrices."""
        return self.oracle.compare(comparisons)

    def fingerprint(self) -> str:
        """A text of the oracle's own fingerprint, and that it is asked in both orders."""
        return f"both orders of {self.oracle.fingerprint()}"

    def counts(self) -> dict[str, float]:
        """The oracle's own."""
        return self.oracle.counts()

    def release(self) -> None:
        """As the oracle does."""
        self.oracle.release()


def debiased(oracle: Oracle) -> Oracle:
    """The oracle itself where it is symmetric by construction, else asked in both orders."""
    return BothOrders(oracle) if oracle.sees_order else oracle
