"""logging/NAME.json: which rows a sink has been told, so that none is told twice."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comal_fast.config import Config
from comal_fast.config.options import what
from comal_fast.errors import InputError
from comal_fast.store.files import read_json, write_json
from comal_fast.store.metrics import Row

Own = tuple[str, int]  # phase, iteration


class Ledger:
    """How many rows of each phase of each iteration are told, under which id.

    A configuration that makes other policies is another run, told from its beginning: of `rows`,
    which are there already, those that stay when it is done, and before that what is made anew.
    """

    def __init__(self, path: Path, identity: str, rows: list[Row], anew: bool = False) -> None:
        self.path = path
        kept = _kept(path)
        self.resumed = kept.get("of") == identity
        if self.resumed:
            self._content: dict[str, Any] = kept
        else:
            stale = _firsts(rows) if kept else {}
            new = {"of": identity, "id": secrets.token_hex(4), "stale": stale}
            self._content = new | {"told": {}, "tables": 0, "end": None}
        if anew:
            self._content |= {"told": {}, "tables": 0, "end": None}

    @property
    def id(self) -> str:
        """8 hex digits."""
        return str(self._content["id"])

    def new(self, rows: list[Row]) -> list[Row]:
        """Those of all the rows there are that are not told yet."""
        seen: dict[str, int] = {}
        firsts, stale, told = _firsts(rows), self._content["stale"], self._content["told"]
        found = []
        for row in rows:
            own = _name(row)
            seen[own] = seen.get(own, 0) + 1
            if firsts[own] != stale.get(own) and seen[own] > told.get(own, 0):
                found.append(row)
        return found

    def done(self) -> None:
        """Note that what is there now is what the configuration makes."""
        self._content["stale"] = {}

    def told(self, rows: Iterable[Row]) -> None:
        """Note these as told."""
        counts = self._content["told"]
        for row in rows:
            counts[_name(row)] = counts.get(_name(row), 0) + 1
        self._write()

    @property
    def tables(self) -> int:
        """The latest iterate whose responses are told."""
        return int(self._content["tables"])

    @tables.setter
    def tables(self, iterate: int) -> None:
        self._content["tables"] = iterate
        self._write()

    @property
    def end(self) -> str | None:
        """A hash of the summary that is told."""
        return self._content["end"]

    @end.setter
    def end(self, digest: str) -> None:
        self._content["end"] = digest
        self._write()

    def _write(self) -> None:
        write_json(self.path, self._content)


def identity(config: Config) -> str:
    """A hash of what makes the policies what they are: not how far a run goes, nor who watches."""
    tree = what(config)
    for name in ("evaluation", "diagnostics"):
        tree.pop(name)
    tree["algorithm"].pop("iterations")
    text = json.dumps(tree, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept(path: Path) -> dict[str, Any]:
    """What an earlier process wrote; {} where there is nothing to go on from."""
    try:
        return read_json(path)
    except InputError:
        return {}


def _firsts(rows: list[Row]) -> dict[str, str]:
    """A hash of the first row of each phase of each iteration."""
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(_name(row), row)
    texts = {own: json.dumps(row, sort_keys=True) for own, row in firsts.items()}
    return {own: hashlib.sha256(text.encode()).hexdigest()[:16] for own, text in texts.items()}


def _name(row: Row) -> str:
    return f"{row['phase']} {row['iteration']}"
