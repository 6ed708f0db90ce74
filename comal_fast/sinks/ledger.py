"""logging/NAME.json: which rows a sink has been told, so that none is told twice."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from comal_fast.config import Config
from comal_fast.config.options import what
from comal_fast.errors import InputError
from comal_fast.store.files import read_json, write_json
from comal_fast.store.metrics import Row

Own = tuple[str, int]  # phase, iteration


class Ledger:
    """How many rows of each phase of each iteration are told, and which tables, under which id.

    A configuration that makes other policies is another run, told from its beginning: of what is
    there already, what stays when that run is done, and before that what is made anew.
    """

    def __init__(
        self, path: Path, identity: str, rows: list[Row], tables: dict[str, str], anew: bool
    ) -> None:
        self.path = path
        kept = _kept(path)
        self.resumed = kept.get("of") == identity
        if self.resumed:
            self._content: dict[str, Any] = kept
        else:
            stale = _firsts(rows, timed=True) | tables
            self._content = {"of": identity, "id": secrets.token_hex(4), "stale": stale, **_NOTHING}
        if anew:
            self._content |= _NOTHING
        self._content = json.loads(json.dumps(self._content))

    @property
    def id(self) -> str:
        """8 hex digits."""
        return str(self._content["id"])

    def new(self, rows: list[Row]) -> list[Row]:
        """Those of all the rows there are that are not told yet.

        Of a phase that was made anew with another result, all.
        """
        seen: dict[str, int] = {}
        firsts, stale, told = _firsts(rows), self._content["stale"], self._content["told"]
        marks = _firsts(rows, timed=True)
        found = []
        for row in rows:
            own = _name(row)
            seen[own] = seen.get(own, 0) + 1
            count, first = told.get(own, (0, ""))
            if marks[own] != stale.get(own) and (first != firsts[own] or seen[own] > count):
                found.append(row)
        return found

    def told(self, new: list[Row], rows: list[Row]) -> None:
        """Note the new ones of all rows as told."""
        told, firsts = self._content["told"], _firsts(rows)
        for row in new:
            own = _name(row)
            count, first = told.get(own, (0, ""))
            told[own] = [count + 1 if first == firsts[own] else 1, firsts[own]]
        self.write()

    def is_new(self, table: str, key: str) -> bool:
        """Whether a table of that key is not told yet."""
        return key not in (self._content["tables"].get(table), self._content["stale"].get(table))

    def told_table(self, table: str, key: str) -> None:
        """Note it as told."""
        self._content["tables"][table] = key
        self.write()

    def done(self) -> None:
        """Note that what is there now is what the configuration makes."""
        self._content["stale"] = {}

    @property
    def end(self) -> str | None:
        """A hash of the summary that is told."""
        return self._content["end"]

    @end.setter
    def end(self, digest: str) -> None:
        self._content["end"] = digest
        self.write()

    def write(self) -> None:
        """Keep it: from now on this run has this id."""
        write_json(self.path, self._content)


_NOTHING: dict[str, Any] = {"told": {}, "tables": {}, "end": None}


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


def _firsts(rows: list[Row], timed: bool = False) -> dict[str, str]:
    """A hash of the first row of each phase of each iteration; `timed`: with what it took."""
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(_name(row), row)
    return {
        own: hashlib.sha256(
            json.dumps(
                {k: v for k, v in row.items() if timed or not k.startswith(("perf/", "mem/"))},
                sort_keys=True,
            ).encode()
        ).hexdigest()[:16]
        for own, row in firsts.items()
    }


def _name(row: Row) -> str:
    return f"{row['phase']} {row['iteration']}"
