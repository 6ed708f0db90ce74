"""Oracles that are a model: when it is loaded, let go of, and how several ranks share the asking.

Under torchrun every rank holds the model and answers a window of its own; rank 0 alone reads and
writes what is kept.
"""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from comal_fast.config.oracle import JudgeConfig
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.oracles.asking import Asking, Known, Question
from comal_fast.system.ranks import rank, world


class Judge(Asking):
    """A model, loaded when it is first asked and held until `release`."""

    def __init__(self, options: JudgeConfig) -> None:
        super().__init__()
        self.options: Any = options
        self.window, self.ways = options.batch_size, world()
        self._model: Any = None

    @abstractmethod
    def load(self) -> Any:
        """The model, in eval mode on its device."""

    @property
    def model(self) -> Any:
        """The model; loaded now if it is not there."""
        if self._model is None:
            self._model = self.load()
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

    def let_go(self) -> None:
        """Let go of the model here."""
        if self._model is not None:
            self._model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


_held: dict[JudgeConfig, Judge] = {}  # on ranks other than 0, where no loop holds them


@collective
def _ask(
    holder: Any, kind: type[Judge], options: JudgeConfig, windows: list[Sequence[Question]]
) -> list[Known]:
    """On rank 0 the answers to each window; rank r asks the r-th."""
    if not isinstance(holder, Judge):  # rank 0's own; the others are given their context
        holder = _held.get(options) or _held.setdefault(options, kind(options))
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
