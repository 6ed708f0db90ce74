"""Seals: a file says what it was made from (its key), and the checksum of all that it holds.

A seal is one field of the file, `KEY.CHECKSUM`. The checksum is of the file's bytes with zeros in
its own place, so no bit of the file can change unnoticed: a changed seal fits no more than changed
content does. Version 0.1 wrote keys alone; they are read, and nothing can be checked there.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from comal_fast.errors import InputError

_SEAL = re.compile(r"(\w+)\.([0-9a-f]{64})")
_OLDER = re.compile(r"[0-9a-f]{32}")
_BLANK = "0" * 64


class Damaged(InputError):
    """A file, or one of a folder, is not what was written: torn, altered or another's."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: damaged ({why})")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[type[Damaged], tuple[Path, str]]:
        return Damaged, (self.path, self.why)


def blank(key: str) -> str:
    """What a file holds in its seal's place till it is sealed."""
    return f"{key}.{_BLANK}"


def sealed(content: bytes, key: str) -> bytes:
    """The file's bytes, which hold `blank(key)` once, with its checksum in them."""
    mark = blank(key).encode()
    if content.count(mark) != 1:
        raise ValueError(f"the key {key} has no one place in the file")
    return content.replace(mark, f"{key}.{_checksum(content)}".encode())


def key_of(seal: str) -> str:
    """The key that a seal begins with."""
    return seal.partition(".")[0]


def check(path: Path, content: bytes, seal: str) -> None:
    """Raises Damaged where the file's bytes are not those that were sealed."""
    if _OLDER.fullmatch(seal):
        return
    found = _SEAL.fullmatch(seal)
    mark = seal.encode()
    if found is None or content.count(mark) != 1:
        raise Damaged(path, "its seal is broken")
    if _checksum(content.replace(mark, blank(found[1]).encode())) != found[2]:
        raise Damaged(path, "its content is not what was written")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
