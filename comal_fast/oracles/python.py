"""The `python` oracle: a function of the user's own.

It is called with a list of `Comparison`, and returns one entry of each: a matrix of P(left ≻ right)
or, under `returns: scores`, a score of every response, those of `left` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from comal_fast.config.oracle import PythonConfig
from comal_fast.config.plugins import imported
from comal_fast.errors import InputError
from comal_fast.oracles.asking import Asking, Known, Question
from comal_fast.oracles.base import Comparison, Oracle
from comal_fast.oracles.checked import check_matrix, short


class PythonOracle(Asking):
    """`function` under the options of its configuration; `source`: a hash of its file."""

    def __init__(self, function: Callable[[list[Comparison]], Any], source: str, o: PythonConfig):
        super().__init__()
        self.function, self.source, self.options = function, source, o
        self.sees_order, self.window = o.both_orders, o.batch_size

    def questions(self, item: Comparison) -> list[Question]:
        """The whole comparison."""
        return [_whole(item)]

    def matrix(self, item: Comparison, known: Mapping[Question, np.ndarray]) -> np.ndarray:
        """(len(left), len(right)) float64 P(left ≻ right)."""
        return known[_whole(item)].reshape(len(item.left), len(item.right))

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield what the function returned, checked, a matrix of each.

        Raises InputError where it does not return an entry of each, or other than it should.
        """
        batch = [Comparison(q.messages, list(q.left), list(q.right)) for q in questions]
        given = self.function(batch)
        try:
            answers = list(given)
        except TypeError:
            raise self._wrong(f"returned {type(given).__name__}, no list") from None
        if len(answers) != len(batch):
            raise self._wrong(f"returned {len(answers)} entries for {len(batch)} comparisons")
        entries = zip(questions, batch, answers, strict=True)
        yield {q: self._matrix(item, answer).ravel() for q, item, answer in entries}

    def asked(self) -> str:
        """A text of the function's file and name, and of what its answers mean."""
        o = self.options
        name = o.function.rpartition(":")[2]
        return f"python/1 {self.source} {name} {[o.returns, o.temperature]}"

    def _matrix(self, item: Comparison, answer: Any) -> np.ndarray:
        try:
            values = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError):
            raise self._wrong(f"returned no numbers for the prompt {short(item.prompt)}") from None
        n, m = len(item.left), len(item.right)
        if self.options.returns == "probabilities":
            return check_matrix(values, item, "python")
        if values.shape != (n + m,):
            raise self._wrong(
                f"returned scores of shape {values.shape} instead of ({n + m},), one of each "
                f"response, for the prompt {short(item.prompt)}"
            )
        if not np.isfinite(values).all():
            at = int(np.argmax(~np.isfinite(values)))
            raise self._wrong(
                f"scored {values[at]:g} for the prompt {short(item.prompt)}, response "
                f"{short([*item.left, *item.right][at])}"
            )
        gaps = values[:n, None] - values[None, n:]
        result: np.ndarray = expit(gaps / (self.options.temperature or 1.0))
        return result

    def _wrong(self, what: str) -> InputError:
        return InputError(f"oracle.function {self.options.function}: {what}")


def _whole(item: Comparison) -> Question:
    return Question(item.messages, tuple(item.left), tuple(item.right))


def make(options: PythonConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a file or function that is not there."""
    place, _, name = options.function.rpartition(":")
    module, source = imported(place, "oracle.function")
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"oracle.function: no function {name} in {place}")
    return PythonOracle(function, source, options)
