"""What generates: an interface, and the engine that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from comal_fast.config.schema import GenerationConfig, ModelConfig
from comal_fast.model.stored import Stored


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
    stored: Callable[[], Stored]
    """Where it lies, for a process that loads it itself."""
    tokenizer: Any
    config: ModelConfig
    device: torch.device
    log: Path
    """Begins the names of files that an engine's own processes log to."""


class Engine(Protocol):
    """Samples one policy; a file of this folder each, named as `generation.engine` is.

    The file's `make(options, policy)` returns one; its options are a class of
    `comal_fast/config/generation.py`.
    """

    apart: bool
    """Whether it samples in processes of its own, of which a node needs no more than one rank."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        seed: str,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its `count` responses}, some prompts at a time, in any order.

        `part` (r, n): only part r of n that together are all.
        """


def make_engine(options: GenerationConfig, policy: Sampled) -> Engine:
    """The engine that `options.engine` names."""
    module = importlib.import_module(f"comal_fast.generation.{options.engine}")
    engine: Engine = module.make(options, policy)
    return engine
