"""What every preference oracle looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from comal_fast.data.conversation import Message, Messages, last_user_text

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Comparison:
    """Responses to one conversation: every one of `left` is to be compared with all of `right`."""

    messages: Messages
    """Every message before the responses, the system's included; a text is the user's."""
    left: Sequence[str]
    right: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.messages, str):
            object.__setattr__(self, "messages", (Message("user", self.messages),))

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return last_user_text(self.messages)


class Oracle(ABC):
    """A judge that says P(y ≻ y' | x), with P(y≻y') + P(y'≻y) = 1."""

    sees_order: bool = False  # True: asked in both orders, and averaged
    is_model: bool = False  # True: it needs the room that policies take

    @abstractmethod
    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield a (len(left), len(right)) float64 matrix of P(left ≻ right) for each, in order."""

    def first_wins(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray] | None:
        """Yield P(left ≻ right) with `left` shown first, what `compare` averages over both orders.

        None: no order is heeded.
        """
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes whenever a judgement could."""

    def counts(self) -> dict[str, float]:
        """What it was asked since it was made, and what that took, for the log."""
        return {}

    def release(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of the memory of what is asked, models above all; asked again, it comes back."""


def self_comparison(messages: Messages, responses: Sequence[str]) -> Comparison:
    """The comparison of all K responses with each other."""
    return Comparison(messages, responses, responses)


def conversations(samples: pa.Table) -> list[Messages]:
    """Of each row of samples the conversation it answers; 0.1 kept the last user's text alone."""
    if "messages" not in samples.column_names:
        return [(Message("user", text),) for text in samples["prompt"].to_pylist()]
    rows = samples["messages"].to_pylist()
    return [
        tuple(Message(m["role"], m["content"], m.get("extra") or "") for m in row) for row in rows
    ]
