"""Oracles that are asked one question at a time, and whose answers are kept."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from comal_fast.data.conversation import Messages
from comal_fast.oracles.base import Comparison, Oracle
from comal_fast.store.answers import Answers


@dataclass(frozen=True)
class Question:
    """What an oracle is asked in one go: one response, two in their order, or two sides."""

    messages: Messages
    left: tuple[str, ...]
    right: tuple[str, ...] = ()


Known = dict[Question, np.ndarray]


class Asking(Oracle):
    """An oracle that answers each question with a vector, whatever else it is asked.

    `window`: questions after which it is asked: models answer them in one pass, and what comes
    together is written together. Windows follow from the comparisons alone, so that a run that was
    killed and goes on asks the rest in the same passes.
    """

    window: int = 1
    ways: int = 1  # windows that are asked at once
    answers: Answers | None = None  # None: nothing is kept

    def __init__(self) -> None:
        self._counts = {"oracle/asked": 0.0, "oracle/known": 0.0}

    @abstractmethod
    def questions(self, item: Comparison) -> list[Question]:
        """What must be known for the comparison's matrix, nothing twice."""

    @abstractmethod
    def matrix(self, item: Comparison, known: Mapping[Question, np.ndarray]) -> np.ndarray:
        """(len(left), len(right)) float64 P(left ≻ right)."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield the answers as they come; what is yielded together is kept together."""

    @abstractmethod
    def asked(self) -> str:
        """A text that changes whenever an answer could."""

    def fingerprint(self) -> str:
        """What is asked, where nothing else makes a preference of the answers."""
        return self.asked()

    def ask_windows(self, windows: Sequence[Sequence[Question]]) -> Iterator[Known]:
        """Yield the answers to at most `ways` windows as they come."""
        for window in windows:
            yield from self.ask(window)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield a (len(left), len(right)) float64 matrix for each, in order."""
        windows = self._windows(comparisons)
        while some := list(islice(windows, self.ways)):
            known = self._known(some)
            for item in (item for window in some for item in window):
                yield self.matrix(item, known)

    def counts(self) -> dict[str, float]:
        """Questions that were asked, and those whose answers were there."""
        return dict(self._counts)

    def release(self) -> None:
        """Let go of the file of answers."""
        if self.answers:
            self.answers.close()

    def _windows(self, comparisons: Iterable[Comparison]) -> Iterator[list[Comparison]]:
        window: list[Comparison] = []
        size = 0
        for item in comparisons:
            more = len(self.questions(item))
            if window and size + more > self.window:
                yield window
                window, size = [], 0
            window.append(item)
            size += more
        if window:
            yield window

    def _known(self, windows: Sequence[Sequence[Comparison]]) -> Known:
        """The answers to all that the windows need; those not there yet are asked and kept."""
        seen: set[Question] = set()
        wanted: list[list[Question]] = []
        for window in windows:
            questions = dict.fromkeys(q for item in window for q in self.questions(item))
            wanted.append([q for q in questions if q not in seen])
            seen.update(questions)
        known, keys = self._read([q for window in wanted for q in window])
        missing = [[q for q in window if q not in known] for window in wanted]
        self._counts["oracle/known"] += len(known)
        for found in self.ask_windows([window for window in missing if window]):
            if self.answers:
                self.answers.write({keys[q]: value for q, value in found.items()})
            self._counts["oracle/asked"] += len(found)
            known |= found
        return known

    def _read(self, questions: Sequence[Question]) -> tuple[Known, dict[Question, bytes]]:
        if not self.answers:
            return {}, {}
        asked = self.asked()
        keys = {q: _key(asked, q) for q in questions}
        found = self.answers.read(list(keys.values()))
        return {q: found[key] for q, key in keys.items() if key in found}, keys


class Scores(Asking):
    """Asked about one response at a time; two vectors make a preference."""

    @abstractmethod
    def preferences(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n, m) float64 P(left ≻ right) of (n, d) and (m, d) answers."""

    def questions(self, item: Comparison) -> list[Question]:
        """One a distinct response."""
        texts = dict.fromkeys([*item.left, *item.right])
        return [Question(item.messages, (text,)) for text in texts]

    def matrix(self, item: Comparison, known: Mapping[Question, np.ndarray]) -> np.ndarray:
        """(len(left), len(right)) float64 P(left ≻ right)."""
        left, right = (
            np.stack([known[Question(item.messages, (text,))] for text in side])
            for side in (item.left, item.right)
        )
        return self.preferences(left, right)


class Orders(Asking):
    """Asked for P(first ≻ second) of two responses in their order.

    Both orders are asked and averaged, P(y ≻ y') = ½ (P(first ≻ second | y, y') + 1 −
    P(first ≻ second | y', y)), so that the place of a response does not count; one draws with
    itself and is not asked about. (COMAL, arXiv 2410.23223v1, for its pairwise judge.)
    """

    _one_order = False  # while only `left` is shown first

    def first_wins(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield P(left ≻ right) with `left` shown first; the other order is not asked."""
        try:
            self._one_order = True
            yield from self.compare(comparisons)
        finally:
            self._one_order = False

    def questions(self, item: Comparison) -> list[Question]:
        """One an ordered pair of distinct texts, those with one text first together."""
        left, right = dict.fromkeys(item.left), dict.fromkeys(item.right)
        orders = [(a, b) for a in left for b in right]
        if not self._one_order:
            orders += [(b, a) for b in right for a in left]
        distinct = dict.fromkeys((a, b) for a, b in orders if a != b)
        return [Question(item.messages, (a,), (b,)) for a, b in distinct]

    def matrix(self, item: Comparison, known: Mapping[Question, np.ndarray]) -> np.ndarray:
        """(len(left), len(right)) float64 P(left ≻ right), both orders averaged."""

        def first(a: str, b: str) -> float:
            return float(known[Question(item.messages, (a,), (b,))][0])

        def wins(a: str, b: str) -> float:
            if a == b:
                return 0.5
            return first(a, b) if self._one_order else (first(a, b) + 1 - first(b, a)) / 2

        rows = [[wins(a, b) for b in item.right] for a in item.left]
        return np.array(rows, dtype=np.float64).reshape(len(item.left), len(item.right))


def _key(asked: str, question: Question) -> bytes:
    messages = [m if m.extra else (m.role, m.content) for m in question.messages]
    content: list[Any] = [asked, messages, question.left, question.right]
    return hashlib.sha256(json.dumps(content).encode()).digest()
