"""Artefacts: whole or absent, sealed with the key of what they were made from; a class a kind."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comal_fast.errors import InputError
from comal_fast.store.files import OLD, PARTIAL, checksum, read_bytes, remove, sync, write_bytes
from comal_fast.store.seal import Damaged, blank, check, key_of, sealed
from comal_fast.system.ranks import is_main
from comal_fast.system.terminal import console

if TYPE_CHECKING:  # slow to load, and only tables need it
    import pyarrow as pa

_KEY = b"comal_key"
KEY_FILE = "comal.json"


def make_key(*parts: Any) -> str:
    """A hash of everything that an artefact is made from (JSON-able parts)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Artefact(ABC):
    """What one phase writes and others read. What is damaged raises Damaged, which names it."""

    def __init__(self, path: Path, phase: str) -> None:
        self.path, self.phase = path, phase

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether it is there; never in part."""
        return self.path.exists()

    @abstractmethod
    def key(self) -> str | None:
        """The key it carries, its content unseen; None where it is not there."""

    @abstractmethod
    def verify(self) -> None:
        """Raise Damaged unless its content is what was written."""

    def holds(self, *keys: str) -> bool:
        """Whether it is there, made from the same things (any of `keys`), and whole.

        What is damaged is said, and set aside.
        """
        try:
            if self.key() not in keys:
                return False
            self.verify()
        except Damaged as error:
            if not is_main():  # who writes sets aside
                raise
            aside = self.set_aside()
            console.print(
                f"  [yellow]![/] {error.path}: damaged ({error.why}); set aside as {aside.name}, "
                "and made anew",
                soft_wrap=True,
            )
            return False
        return True

    def set_aside(self) -> Path:
        """Move it to a name that nothing reads, which is returned."""
        aside = self.path.with_name(f"{self.path.name}.bad")
        remove(aside)
        self.path.rename(aside)
        sync(self.path.parent)
        return aside

    def discard(self) -> None:
        """Remove it, where it is there."""
        remove(self.path)

    def _must_exist(self) -> None:
        if not self.exists():
            raise InputError(f"{self.path}: no such file; the phase `{self.phase}` has not run")


class Table(Artefact):
    """A parquet file; its seal stands in the metadata."""

    def key(self) -> str | None:
        return key_of(self._metadata().get(_KEY, b"").decode()) if self.path.is_file() else None

    def verify(self) -> None:
        self._content()

    def read(self) -> pa.Table:
        """The table. Raises InputError where it is absent, Damaged where it is not as written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._must_exist()
        content = self._content()
        with _whole(self.path):
            return pq.read_table(pa.BufferReader(content))

    def write(self, content: pa.Table, key: str) -> None:
        """Write the table, sealed with its key."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, content.schema) as writer:
            writer.write_table(content)
            # not in the schema: that is written a second time, encoded
            writer.add_key_value_metadata({_KEY: blank(key).encode()})
        write_bytes(self.path, sealed(sink.getvalue().to_pybytes(), key))

    def _metadata(self) -> dict[bytes, bytes]:
        import pyarrow.parquet as pq

        with _whole(self.path):
            return pq.read_metadata(self.path).metadata or {}

    def _content(self) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = read_bytes(self.path)
        with _whole(self.path):
            metadata = pq.read_metadata(pa.BufferReader(content)).metadata or {}
            seal = metadata.get(_KEY, b"").decode()
        check(self.path, content, seal)
        return content


class Json(Artefact):
    """A JSON object; its seal is its field `key`."""

    def key(self) -> str | None:
        return key_of(_parsed(self.path)[1]["key"]) if self.path.is_file() else None

    def verify(self) -> None:
        content, parsed = _parsed(self.path)
        check(self.path, content, parsed["key"])

    def read(self) -> dict[str, Any]:
        """The object. Raises InputError where it is absent, Damaged where it is not as written."""
        self._must_exist()
        content, parsed = _parsed(self.path)
        check(self.path, content, parsed["key"])
        return parsed

    def write(self, content: dict[str, Any], key: str) -> None:
        """Write the object, sealed with its key as the first field."""
        text = json.dumps({"key": blank(key), **content}, indent=2) + "\n"
        write_bytes(self.path, sealed(text.encode(), key))


class Folder(Artefact):
    """A folder of files; what seals it stands in a file of its own, with their checksums."""

    def key(self) -> str | None:
        return folder_key(self.path)

    def verify(self) -> None:
        verify_folder(self.path)

    def rests_on(self) -> str | None:
        """The key of the weights that an adapter in it was trained on, where it says so."""
        file = self.path / KEY_FILE
        return _parsed(file)[1].get("rests_on") if file.is_file() else None

    @contextmanager
    def write(self, key: str, rests_on: str | None = None) -> Iterator[Path]:
        """Yield a temporary folder that takes the artefact's place when the block ends well."""
        with write_folder(self.path, key, rests_on) as temporary:
            yield temporary


def folder_key(path: Path) -> str | None:
    """The key of a folder that was written as a whole, None where there is none."""
    file = path / KEY_FILE
    return key_of(_parsed(file)[1]["key"]) if file.is_file() else None


def verify_folder(path: Path) -> None:
    """Raise Damaged unless the folder's files are those that were written.

    InputError where one came to them since: what reads the folder may read it too. Files are read
    once a process, unless they change.
    """
    file = path / KEY_FILE
    content, parsed = _parsed(file)
    check(file, content, parsed["key"])
    if "files" not in parsed:  # 0.1's
        return
    sums: dict[str, str] = parsed["files"]
    for name, expected in sums.items():
        part = path / name
        if not part.is_file():
            raise Damaged(part, "it is gone")
        if checksum(part) != expected:
            raise Damaged(part, "its content is not what was written")
    more = sorted(str(f.relative_to(path)) for f in _files(path) if f.suffix != ".md")
    if foreign := [name for name in more if name not in sums and name != KEY_FILE]:
        raise InputError(
            f"{path / foreign[0]}: the run did not write this file, and may read it with the "
            "others; move it elsewhere"
        )


@contextmanager
def write_folder(path: Path, key: str, rests_on: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, sealed, when the block ends well."""
    temporary = path.with_name(PARTIAL.format(path.name))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        seal_folder(temporary, key, rests_on)
    except BaseException:  # the disk may be full of it
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():  # a folder cannot be renamed onto another
        old = moved_away(path)
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)
    sync(path.parent)


def moved_away(path: Path) -> Path:
    """Where a folder is for the instant in which another takes its place."""
    return path.with_name(OLD.format(path.name))


def seal_folder(path: Path, key: str, rests_on: str | None = None) -> None:
    """Write the key and the checksums of a folder's files into it, and all of them to disk."""
    sums = {}
    for file in _files(path):
        if file.name != KEY_FILE:
            sync(file)
            sums[str(file.relative_to(path))] = checksum(file)
    more = {} if rests_on is None else {"rests_on": rests_on}
    text = json.dumps({"key": blank(key), **more, "files": sums}, indent=2) + "\n"
    write_bytes(path / KEY_FILE, sealed(text.encode(), key))
    sync(path)


def _files(folder: Path) -> list[Path]:
    """Those in a folder and its folders, but hidden ones that no library reads."""
    every = sorted(f for f in folder.rglob("*") if f.is_file())
    return [f for f in every if not f.name.startswith(".") or f.name == ".metadata"]


def _parsed(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a JSON file that is sealed, and its object with a `key`."""
    content = read_bytes(path)
    with _whole(path):
        parsed = json.loads(content)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("key"), str):
        raise Damaged(path, "it holds no key")
    return content, parsed


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Within the block, what pyarrow and json make of a damaged file raises Damaged.

    They raise ValueErrors and OSErrors then; one with an error number is not about its content.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise InputError(f"{path}: can't be read ({error.strerror})") from None
        raise Damaged(path, " ".join(str(error).split())[:200]) from None
    except (ValueError, RecursionError) as error:
        raise Damaged(path, " ".join(str(error).split())[:200]) from None
