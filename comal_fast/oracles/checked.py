"""What an oracle says is a probability, or the run stops with the prompt and responses named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np

from comal_fast.errors import InputError
from comal_fast.oracles.base import Comparison, Oracle

SLACK = 1e-6  # of P(a ≻ b) + P(b ≻ a) from 1: what float32 leaves
_SHOWN = 60  # characters of a text in a message


class Checked(Oracle):
    """An oracle whose every matrix has the right shape, no NaN and nothing outside [0, 1].

    `complementary`: P(a ≻ b) + P(b ≻ a) = 1 is checked too, where all are compared with all.
    """

    def __init__(self, oracle: Oracle, name: str, *, complementary: bool = True) -> None:
        self.oracle, self.name, self.complementary = oracle, name, complementary
        self.sees_order, self.is_model = oracle.sees_order, oracle.is_model

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the oracle's matrices. Raises InputError for the first that is none."""
        asked, kept = tee(comparisons)
        answers = self.oracle.compare(asked)
        for item in kept:
            matrix = next(answers, None)
            if matrix is None:
                raise InputError(f"oracle {self.name}: no answer {_about(item)}")
            yield self._check(np.asarray(matrix, dtype=np.float64), item)

    def first_wins(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray] | None:
        """The oracle's own."""
        return self.oracle.first_wins(comparisons)

    def fingerprint(self) -> str:
        """The oracle's own."""
        return self.oracle.fingerprint()

    def counts(self) -> dict[str, float]:
        """The oracle's own."""
        return self.oracle.counts()

    def release(self) -> None:
        """As the oracle does."""
        self.oracle.release()

    def _check(self, matrix: np.ndarray, item: Comparison) -> np.ndarray:
        check_matrix(matrix, item, self.name)
        if self.complementary and list(item.left) == list(item.right):
            off = np.abs(matrix + matrix.T - 1)
            if (off > SLACK).any():
                i, j = divmod(int(off.argmax()), len(off))
                raise InputError(
                    f"oracle {self.name}: P(a ≻ b) = {matrix[i, j]:g} and P(b ≻ a) = "
                    f"{matrix[j, i]:g} do not add up to 1 {_about(item, i, j)}; one that heeds the "
                    "order of the two is asked in both (python: both_orders)"
                )
        return matrix


def check_matrix(matrix: np.ndarray, item: Comparison, name: str) -> np.ndarray:
    """The matrix. Raises InputError where its shape is another, or an entry no probability."""
    shape = len(item.left), len(item.right)
    if matrix.shape != shape:
        raise InputError(
            f"oracle {name}: a matrix of shape {matrix.shape} instead of {shape} {_about(item)}"
        )
    wrong = ~((matrix >= 0) & (matrix <= 1))  # NaN too
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise InputError(
            f"oracle {name}: P = {matrix[i, j]:g} is no probability {_about(item, i, j)}"
        )
    return matrix


def _about(item: Comparison, i: int | None = None, j: int | None = None) -> str:
    text = f"for the prompt {short(item.prompt)}"
    if i is None or j is None:
        return text
    return f"{text}, a = {short(item.left[i])}, b = {short(item.right[j])}"


def short(text: str) -> str:
    """The beginning of a text, quoted, on one line."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
