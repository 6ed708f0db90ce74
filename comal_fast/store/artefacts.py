"""Artefacts: whole or absent, each with the key of what it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from comal_fast.errors import InputError
from comal_fast.store.files import replacing, sync

_KEY = b"comal_key"
_KEY_FILE = "comal.json"


def make_key(*parts: Any) -> str:
    """A hash of everything that an artefact is made from (JSON-able parts)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_table(path: Path, table: pa.Table, key: str) -> None:
    """Write a parquet file that carries `key`."""
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: key.encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def table_key(path: Path) -> str | None:
    """The key of a parquet artefact, None where there is no such file."""
    if not path.is_file():
        return None
    return (pq.read_schema(path).metadata or {}).get(_KEY, b"").decode()


def read_table(path: Path) -> pa.Table:
    """Read a parquet artefact; ValueError where it is absent."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the phase that writes it has not run")
    return pq.read_table(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON artefact; ValueError where it is absent."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the phase that writes it has not run")
    return json.loads(path.read_text(encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def json_key(path: Path) -> str | None:
    """The `key` field of a JSON artefact, None where there is no such file."""
    return json.loads(path.read_text())["key"] if path.is_file() else None


@contextmanager
def write_folder(path: Path, key: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with its key, when the block ends well."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    (temporary / _KEY_FILE).write_text(json.dumps({"key": key}) + "\n")
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


def folder_key(path: Path) -> str | None:
    """The key of a folder artefact, None where there is none."""
    return json_key(path / _KEY_FILE)


def hash_files(files: list[Path]) -> str:
    """One hash of the files' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
