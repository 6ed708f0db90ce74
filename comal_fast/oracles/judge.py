"""Oracles that are a model: when it is loaded, let go of, and how several ranks share the asking.

Under torchrun every rank holds the model and answers a window of its own; rank 0 alone reads and
writes what is kept.
"""

from __future__ import annotations

import gc
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from comal_fast.config.oracle import JudgeConfig
from comal_fast.data.conversation import Messages, last_user_text
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.errors import InputError
from comal_fast.model.judge import OPTION, is_folder, load_reader, positions, source_key
from comal_fast.oracles.asking import Asking, Known, Question
from comal_fast.oracles.checked import short
from comal_fast.system.ranks import rank, world


class Judge(Asking):
    """A model, loaded when it is first asked and held until `release`."""

    is_model = True

    def __init__(self, options: JudgeConfig) -> None:
        super().__init__()
        self.options: Any = options
        self.window, self.ways = options.batch_size, world()
        self._model: Any = None
        self._room: int | None = None  # positions that the model has learned

    @abstractmethod
    def load(self) -> Any:
        """The model, in eval mode on its device."""

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        return load_reader(self.options)

    @property
    def model(self) -> Any:
        """The model; loaded now if it is not there."""
        if self._model is None:
            self._model = self.load()
            self._room = positions(self._model)
        return self._model

    def ask_windows(self, windows: Sequence[Sequence[Question]]) -> Iterator[Known]:
        """Yield the answers, each window's from a rank."""
        if world() == 1:
            yield from super().ask_windows(windows)
        elif windows:
            yield from _ask(self, type(self), self.options, list(windows))

    def release(self) -> None:
        """Let go of the model, on every rank."""
        super().release()
        if world() == 1:
            self.let_go()
        else:
            _release(self)

    def named(self, kind: str, *more: Any) -> str:
        """A text of the weights, how they are held, and `more`: what tells answers.

        How much goes through the model at once is no part of it: it moves them by rounding alone.
        """
        o = self.options
        return f"{kind} {json.dumps([self._source, o.dtype, o.quantization, *more])}"

    @cached_property
    def _source(self) -> str:
        return source_key(self.options)

    def check_length(self, ids: Sequence[int], messages: Messages, *responses: str) -> None:
        """Raise InputError for more tokens than `max_length`."""
        limit, room = self.options.max_length, self._room
        if room is not None and len(ids) > room:
            raise InputError(
                f"{OPTION} {self.options.model}: it has {room} positions, fewer than the "
                f"{len(ids)} tokens of the prompt {short(last_user_text(messages))} with "
                f"{' and '.join(map(short, responses))}"
            )
        if len(ids) > limit:
            raise InputError(
                f"oracle.max_length: {limit} is less than the {len(ids)} tokens of the prompt "
                f"{short(last_user_text(messages))} with {' and '.join(map(short, responses))}"
            )

    def check_finite(self, questions: Sequence[Question], values: np.ndarray, what: str) -> None:
        """Raise InputError, `what` named, for the first question of which a value is not finite.

        values (n,) or (n, d), one row a question.
        """
        for question, row in zip(questions, values, strict=True):
            if not np.isfinite(row).all():
                texts = " and ".join(map(short, (*question.left, *question.right)))
                raise InputError(
                    f"{OPTION} {self.options.model}: its {what} is not finite for the prompt "
                    f"{short(last_user_text(question.messages))}, response {texts}"
                )

    def checked(self) -> Self:
        """This judge. Raises InputError for a folder without a tokenizer, before it is asked."""
        if is_folder(self.options):
            self.tokenizer  # noqa: B018 - says what it lacks before anything is sampled
        return self

    def let_go(self) -> None:
        """Let go of the model here."""
        if self._model is not None:
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


_held: dict[str, Judge] = {}  # on ranks other than 0, where no loop holds them


@collective
def _ask(
    holder: Any, kind: type[Judge], options: JudgeConfig, windows: list[Sequence[Question]]
) -> list[Known]:
    """On rank 0 the answers to each window; rank r asks the r-th."""
    if not isinstance(holder, Judge):  # rank 0's own; the others are given their context
        name = options.model_dump_json()
        holder = _held.get(name) or _held.setdefault(name, kind(options))
    found: Known = {}
    for piece in holder.ask(windows[rank()]) if rank() < len(windows) else ():
        found |= piece
    return gather(found)


@collective
def _release(holder: Any) -> None:
    if isinstance(holder, Judge):
        holder.let_go()
    for judge in _held.values():
        judge.let_go()
