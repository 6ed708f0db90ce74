"""What generates: an interface, and the engine that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comal_fast.config.schema import GenerationConfig


@dataclass(frozen=True)
class Response:
    """One sampled response. `finished`: it ended by itself, and its last id is the end token."""

    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sampled:
    """The policy that is sampled, as an engine may want it."""

    model: Callable[[], Any]
    """Loads it into this process."""
    tokenizer: Any


class Engine(Protocol):
    """Samples one policy; a file of this folder each, named as `generation.engine` is.

    The file's `make(options, policy)` returns one; its options are a class of
    `comal_fast/config/generation.py`.
    """

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        seed: str,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its `count` responses}, some prompts at a time, in any order.

        What comes out depends on the seed and the prompts alone. `part` (r, n): only part r of n
        that together are all.
        """


def make_engine(options: GenerationConfig, policy: Sampled) -> Engine:
    """The engine that `options.engine` names."""
    module = importlib.import_module(f"comal_fast.generation.{options.engine}")
    engine: Engine = module.make(options, policy)
    return engine
