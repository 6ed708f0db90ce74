"""Artefacts: whole or absent, each with the key of what it was made from; a class a kind."""

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
from comal_fast.store.files import replacing, sync

if TYPE_CHECKING:  # slow to load, and only tables need it
    import pyarrow as pa

_KEY = b"comal_key"
KEY_FILE = "comal.json"


def make_key(*parts: Any) -> str:
    """A hash of everything that an artefact is made from (JSON-able parts)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Artefact(ABC):
    """What one phase writes and others read."""

    def __init__(self, path: Path, phase: str) -> None:
        self.path, self.phase = path, phase

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether it is there; never in part."""
        return self.path.exists()

    @abstractmethod
    def key(self) -> str | None:
        """The key it carries; None where it is not there."""

    def discard(self) -> None:
        """Remove it, where it is there."""
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink(missing_ok=True)

    def _must_exist(self) -> None:
        if not self.exists():
            raise InputError(f"{self.path}: no such file; the phase `{self.phase}` has not run")


class Table(Artefact):
    """A parquet file; its key stands in the schema's metadata."""

    def key(self) -> str | None:
        import pyarrow.parquet as pq

        if not self.path.is_file():
            return None
        with _readable(self.path):
            return (pq.read_schema(self.path).metadata or {}).get(_KEY, b"").decode()

    def read(self) -> pa.Table:
        """The table. Raises InputError where it is absent or can't be read."""
        import pyarrow.parquet as pq

        self._must_exist()
        with _readable(self.path):
            return pq.read_table(self.path)

    def write(self, content: pa.Table, key: str) -> None:
        """Write the table with its key."""
        import pyarrow.parquet as pq

        metadata = {**(content.schema.metadata or {}), _KEY: key.encode()}
        with replacing(self.path) as temporary:
            pq.write_table(content.replace_schema_metadata(metadata), temporary)


class Json(Artefact):
    """A JSON object; its key is its field `key`."""

    def key(self) -> str | None:
        return str(self.read()["key"]) if self.path.is_file() else None

    def read(self) -> dict[str, Any]:
        """The object, its key included. Raises InputError where it is absent or can't be read."""
        self._must_exist()
        content = read_json(self.path)
        if "key" not in content:
            raise InputError(
                f"{self.path}: it has no `key`, so it is not what `{self.phase}` wrote"
            )
        return content

    def write(self, content: dict[str, Any], key: str) -> None:
        """Write the object with its key as the first field."""
        write_json(self.path, {"key": key, **content})


class Folder(Artefact):
    """A folder of files; its key stands in a file of its own."""

    def key(self) -> str | None:
        return folder_key(self.path)

    @contextmanager
    def write(self, key: str) -> Iterator[Path]:
        """Yield a temporary folder that takes the artefact's place when the block ends well."""
        with write_folder(self.path, key) as temporary:
            yield temporary


def folder_key(path: Path) -> str | None:
    """The key of a folder that was written as a whole, None where there is none."""
    file = path / KEY_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    if "key" not in content:
        raise InputError(f"{file}: it holds no key; delete {path}, and it is made anew")
    return str(content["key"])


@contextmanager
def write_folder(path: Path, key: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with its key, when the block ends well."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / KEY_FILE).write_text(json.dumps({"key": key}) + "\n")
    for file in temporary.iterdir():
        sync(file)
    if path.exists():  # a folder cannot be renamed onto another
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises InputError, naming it, where it is absent or can't be read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with _readable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path}: it holds no JSON object")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def hash_files(files: list[Path]) -> str:
    """One hash of the files' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within the block, a damaged file raises InputError, one line that names it.

    What pyarrow and json raise then are ValueErrors.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # nothing is wrong with the file as such
            raise InputError(f"{path}: can't be read ({error.strerror})") from None
        raise InputError(_damaged(path, error)) from None
    except ValueError as error:
        raise InputError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    why = " ".join(str(error).split())[:200]
    return f"{path}: can't be read ({why}); delete it, and it is made anew"
