"""Files that are whole or absent, one or several at a time; what they hold, and its checksum."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError

STDOUT = "-"  # in place of a file's name
TEMPORARY = PARTIAL, OLD = ".{}.partial", ".{}.old"  # names beside what is written, and replaced
_PIECE = 16 << 20  # bytes that one thread hashes
_BLOCK = 1 << 20  # bytes that it holds at a time
_known: dict[tuple[int, int, int, int], str] = {}  # device, inode, size, time → checksum


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there becomes `path` when all is well.

    Flushed to disk before the rename; through a symbolic link, since a rename would replace it.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(PARTIAL.format(path.name))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises InputError, naming it, where it is absent or can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises InputError, naming it, where it is absent or can't be read."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: can't be read ({why}); delete it, and it is made anew") from None
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


def checksum(path: Path) -> str:
    """SHA-256 of the SHA-256s of a file's pieces, which threads read: as fast as the disk is.

    A process reads a file again only after it changed.
    """
    with path.open("rb") as stream:
        about = os.fstat(stream.fileno())
        name = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
        if name not in _known:

            def piece(start: int) -> bytes:
                digest, end = hashlib.sha256(), min(start + _PIECE, about.st_size)
                for block in range(start, end, _BLOCK):  # little at a time: memory may be short
                    digest.update(os.pread(stream.fileno(), min(_BLOCK, end - block), block))
                return digest.digest()

            starts = range(0, about.st_size, _PIECE)
            if len(starts) < 2:  # where memory is short a thread may never start, nor say so
                digests = [*map(piece, starts)]
            else:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    digests = [*pool.map(piece, starts)]
            _known[name] = hashlib.sha256(b"".join(digests)).hexdigest()
    return _known[name]


def check_target(path: str | Path, option: str) -> None:
    """InputError naming `option` if a file cannot be put at `path`: before any work is done."""
    if str(path) == STDOUT:
        if option == "--json":
            return
        raise InputError(f"{option} -: only --json goes to stdout; give a file name")
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

    A failure before the renames leaves nothing behind. InputError naming the file that failed. The
    path `-` is stdout.
    """
    name = ""
    files = {name: content for name, content in contents.items() if name != STDOUT}
    try:
        with ExitStack() as renames:
            for name, content in files.items():
                renames.enter_context(replacing(Path(name))).write_bytes(content)
    except OSError as error:
        raise InputError(f"{name}: cannot be written ({error.strerror})") from None
    if STDOUT in contents:
        sys.stdout.write(contents[STDOUT].decode())


def check_folder(path: Path, option: str) -> None:
    """Raise InputError, naming `option`, where no folder can be made at `path`, or written to."""
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    except OSError as error:
        raise InputError(
            f"{option} {path}: no such folder can be made ({error.strerror})"
        ) from None
    if not there.is_dir():
        raise InputError(f"{option} {path}: {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: {there} can't be written to; name another folder")


@contextmanager
def locked(folder: Path, option: str, taken: str) -> Iterator[None]:
    """Within the block a folder, which is made, is this process's alone.

    Raises InputError naming `option` where it can't be written to, and `taken` where another
    process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{option} {folder}: it can't be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(taken) from None
        yield
