"""Writing result files all or nothing."""

from __future__ import annotations

import os
from pathlib import Path


def check_target(path: str | Path, option: str) -> None:
    """ValueError naming `option` if a file cannot be put at `path`: before any work is done."""
    if "\0" in str(path) or not str(path):
        raise ValueError(f"{option} {str(path)!r}: not a file name")
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path}: the folder {folder} does not exist; create it first")
    if Path(path).exists() and not Path(path).is_file():  # a rename would replace a device
        raise ValueError(f"{option} {path}: exists and is not a regular file; give a file name")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {folder} is not writable")


def write_all(contents: dict[str, bytes]) -> None:
    """Write every path's bytes: first all under temporary names beside them, then the renames.

    A failure before the renames leaves nothing behind. ValueError naming the file that failed.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for name, content in contents.items():
            target = Path(os.path.realpath(name))  # through a link: a rename would replace it
            temporary = target.with_name(f".comal-{os.getpid()}-{len(staged)}.tmp")
            staged.append((temporary, target))
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, target in staged:
            os.replace(temporary, target)
        for folder in {target.parent for _, target in staged}:
            _sync_folder(folder)
    except OSError as error:
        raise ValueError(f"{name}: cannot be written ({error.strerror})") from None
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renames durable, on systems where a folder can be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
