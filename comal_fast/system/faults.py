"""Faults of the machine, not of the program: a full disk, no memory, a folder that is gone."""

from __future__ import annotations

import errno

import torch

_FULL_DISK = "free some, or move the run to another disk"
_DISK = {
    errno.ENOSPC: _FULL_DISK,
    errno.EDQUOT: _FULL_DISK,
    errno.EROFS: "make it writable, or name another output_dir",
    errno.ESTALE: "the file system was mounted anew",
    errno.EIO: "the disk is failing",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_OWN = {  # of the run's own files; of others they may be a fault of the program
    errno.EACCES: "make it writable, or name another output_dir",
    errno.EPERM: "make it writable, or name another output_dir",
    errno.ENOENT: "something else removed it",
    errno.ENOTDIR: "something else took its place",
}
_FULL = (
    "No space left on device",
    "PytorchStreamWriter failed",
    "enforce fail at inline_container",
)
_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "bad alloc",
    "bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY)


def of_the_machine(error: BaseException) -> str | None:
    """One line, where an error is a fault of the machine: what failed, where, what would help."""
    if is_out_of_memory(error):
        first = str(error).strip().splitlines() or ["MemoryError"]
        return (
            f"out of memory ({first[0][:200]}); `comal-fast plan` says what a configuration takes"
        )
    if isinstance(error, OSError) and error.errno is not None:
        name = str(error.filename or "")
        own = ".partial" in name or "/iterations/" in name or name.endswith("metrics.jsonl")
        advice = _DISK.get(error.errno) or (_OWN.get(error.errno) if own else None)
        return advice and f"{name}{': ' if name else ''}{error.strerror}; {advice}"
    if any(word in str(error) for word in _FULL):
        return f"the disk is full ({str(error).splitlines()[0][:200]}); {_FULL_DISK}"
    return None
