"""Files that are whole or absent, one or several at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from comal_fast.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there becomes `path` when all is well.

    Flushed to disk before the rename; through a symbolic link, since a rename would replace it.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: str | Path, option: str) -> None:
    """InputError naming `option` if a file cannot be put at `path`: before any work is done."""
    if "\0" in str(path) or not str(path):
        raise InputError(f"{option} {str(path)!r}: not a file name")
    folder = Path(path).parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist; create it first")
    if Path(path).exists() and not Path(path).is_file():  # a rename would replace a device
        raise InputError(f"{option} {path}: exists and is not a regular file; give a file name")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: the folder {folder} is not writable")


def write_all(contents: dict[str, bytes]) -> None:
    """Write every path's bytes: first all under temporary names beside them, then the renames.

    A failure before the renames leaves nothing behind. InputError naming the file that failed.
    """
    name = ""
    try:
        with ExitStack() as renames:
            for name, content in contents.items():
                renames.enter_context(replacing(Path(name))).write_bytes(content)
    except OSError as error:
        raise InputError(f"{name}: cannot be written ({error.strerror})") from None


@contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Within the block a folder, which is made, is this process's alone.

    Raises InputError, `taken`, where another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: it can't be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(taken) from None
        yield
