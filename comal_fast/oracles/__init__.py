"""Preference oracles: an interface, and a file each, named as `oracle.name` is."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comal_fast.config.oracle import ORACLE_CHOICE, AskingConfig, OracleConfig
from comal_fast.config.plugins import source_of
from comal_fast.oracles.asking import Asking
from comal_fast.oracles.base import (
    Comparison,
    Message,
    Messages,
    Oracle,
    conversations,
    self_comparison,
)
from comal_fast.oracles.checked import Checked
from comal_fast.oracles.order import debiased
from comal_fast.store.answers import Answers

__all__ = [
    "Comparison",
    "Message",
    "Messages",
    "Oracle",
    "conversations",
    "make_oracle",
    "oracle_key",
    "register",
    "self_comparison",
]
Maker = Callable[[Any], Oracle]
_makers: dict[str, Maker] = {}  # of plugins


def register(options: type[OracleConfig]) -> Callable[[Maker], Maker]:
    """A decorator of the function that makes an oracle from these options, for a plugin.

    `options`: a subclass of OracleConfig whose `name` has one value, what `oracle.name` says.
    """
    (name,) = typing.get_args(options.model_fields["name"].annotation)
    ORACLE_CHOICE.register(options)

    def add(make: Maker) -> Maker:
        _makers[name] = make
        return make

    return add


def make_oracle(options: OracleConfig, cache: Path | None = None) -> Oracle:
    """The oracle that `options.name` names, without position bias, its answers checked.

    `cache`: the file of answers where `oracle.cache` is `auto`; None: nothing is kept. Raises
    InputError for what it needs and does not find.
    """
    if options.name in _makers:
        raw = _makers[options.name](options)
    else:
        module = importlib.import_module(f"comal_fast.oracles.{options.name}")
        raw = module.make(options, cache) if options.name == "mixture" else module.make(options)
    if isinstance(raw, Asking) and isinstance(options, AskingConfig):
        path = cache if options.cache == "auto" else options.cache and Path(options.cache)
        raw.answers = Answers(path) if path else None
    return Checked(debiased(Checked(raw, options.name, complementary=False)), options.name)


def oracle_key(oracle: Oracle, options: OracleConfig) -> str:
    """A text that changes whenever a judgement could: its fingerprint, with a plugin's file."""
    source = source_of(type(options).__module__)
    return oracle.fingerprint() if source is None else f"{oracle.fingerprint()} of {source}"
