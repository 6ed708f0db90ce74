"""What a long phase has so far: kept as it comes, so that a kill loses little; gone at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comal_fast.store.artefacts import Json

SECONDS, ITEMS = 30.0, 256  # after which what has come since the last shard is written


@dataclass
class Shards:
    """A folder of files, each with some items by number, all made from the same things (`key`)."""

    folder: Path
    key: str
    _held: dict[int, Any] = field(default_factory=dict)
    _since: float | None = None

    def part(self, name: str) -> Shards:
        """Those of a part of the work, whose items have numbers of their own."""
        return Shards(self.folder / name, self.key)

    def read(self) -> dict[int, Any]:
        """Every item that is kept. What was made from other things is removed."""
        found: dict[int, Any] = {}
        for file in sorted(self.folder.glob("*.json")):
            shard = Json(file, "")
            if shard.holds(self.key):
                items = shard.read()["items"]
                found |= {int(number): item for number, item in items.items()}
            else:
                file.unlink(missing_ok=True)
        return found

    def add(self, items: Mapping[int, Any]) -> None:
        """Keep JSON-able items, with others that have come of late or will soon."""
        self._since = time.monotonic() if self._since is None else self._since
        self._held |= items
        if len(self._held) >= ITEMS or time.monotonic() - self._since >= SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is not written yet: a file, whole or absent, named after its first item."""
        if self._held:
            shard = Json(self.folder / f"{min(self._held)}.json", "")
            shard.write({"items": self._held}, self.key)
        self._held, self._since = {}, None

    def discard(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)
