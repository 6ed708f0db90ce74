"""What a log sink is, and what it is given."""

from __future__ import annotations

import importlib
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from comal_fast.errors import InputError

State = Literal["done", "stopped", "failed"]
PROJECT = "comal-fast"
STEP, ITERATION = "step", "iteration"


@dataclass(frozen=True)
class Point:
    """A row of metrics with both axes: optimiser steps since the run began, and the iteration."""

    phase: str
    iteration: int
    step: int
    values: dict[str, float]
    """`phase/measure` → value; a row's lists and texts are left out."""
    row: Mapping[str, Any]

    @property
    def axis(self) -> int:
        """The step where the phase has steps, else the iteration."""
        return self.step if self.phase == "train" else self.iteration


@dataclass(frozen=True)
class Opened:
    """The run that a sink is told of."""

    folder: Path
    """For files of the sink's own."""
    name: str
    id: str
    """8 hex digits, the same whenever this run goes on."""
    resumed: bool
    config: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextTable:
    """Rows of text under column names, of iterate `iteration`."""

    name: str
    iteration: int
    columns: list[str]
    rows: list[list[Any]]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


@dataclass(frozen=True)
class Result:
    """What is there when a run has ended."""

    summary: dict[str, float]
    tables: list[TextTable]
    pictures: list[Path]
    files: list[Path]


class Sink:
    """One service or format. Its methods are called by one thread at a time, `open` first."""

    anew: ClassVar[bool] = False
    """Whether it is told everything again when a run goes on, which it then writes anew."""
    rows_at_once: ClassVar[int] = 50
    """Most points that `tell` is given; what is told is noted after each."""

    def open(self, run: Opened) -> str:
        """Begin the run there, or go on with it; returns where it is to be seen, for a person."""
        raise NotImplementedError

    def tell(self, points: list[Point]) -> None:
        """Take new points, kept when this returns."""
        raise NotImplementedError

    def table(self, table: TextTable) -> None:
        """Take a table, of held-out responses say."""

    def result(self, result: Result) -> None:
        """Take what the end of a run leaves."""

    def close(self, state: State) -> None:
        """Let go of the run, which may be gone on with later."""


def library(name: str) -> ModuleType:
    """Import what a sink needs. Raises InputError where it is not installed."""
    if find_spec(name) is None:
        raise InputError(f"logging: {name} is not installed; pip install comal-fast[{name}]")
    return importlib.import_module(name)


def reachable(address: str, seconds: float = 3) -> bool:
    """Whether something answers at an http(s) address, through the proxy that is set if any."""
    parts = urlsplit(address)
    if not parts.hostname:
        return False
    place = parts.netloc.rpartition("@")[2]  # nobody needs a password to hear that it is there
    request = Request(parts._replace(netloc=place).geturl(), method="HEAD")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told it
    try:
        opener = build_opener(ProxyHandler(), HTTPSHandler(context=context))
        opener.open(request, timeout=seconds).close()
    except HTTPError as error:
        return error.code not in (502, 503, 504)  # what proxies say of a server that is away
    except (OSError, HTTPException):
        return False
    return True


def numbers(phase: str, row: Mapping[str, Any]) -> dict[str, float]:
    """`phase/measure` → the numbers of a row that are finite or infinite; no booleans."""
    out = {"phase", ITERATION, STEP, "epoch"}
    return {
        f"{phase}/{name}": float(value)
        for name, value in row.items()
        if name not in out
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and not math.isnan(value)
    }


def batches(entries: list[Any], most: int) -> list[list[Any]]:
    """The entries, so many at a time."""
    return [entries[i : i + most] for i in range(0, len(entries), most)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of a tree of options."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
