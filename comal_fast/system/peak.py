"""Memory in use and its peak: of PyTorch's allocator on a GPU, of the process's pages on a CPU.

On a CPU freed pages that the process keeps count.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from comal_fast.errors import InputError

_PROCESS = Path("/proc/self")


def bytes_in_use(device: torch.device) -> int:
    """Bytes held now. Raises InputError where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _pages("VmRSS")


def start_peak(device: torch.device) -> None:
    """Begin a phase. Raises InputError where the system can't (no Linux, or not allowed)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets the high-water mark
    except OSError as error:
        raise InputError(f"peak memory on a CPU can't be measured here: {error}") from None


def peak_bytes(device: torch.device) -> int:
    """The most bytes held since `start_peak`. Raises InputError where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _pages("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Begin a phase; where the system can't, the peak goes on rising. Starts no GPU."""
    if device.type == "cuda" and not torch.cuda.is_initialized():
        return
    with suppress(InputError):
        start_peak(device)


def peak_gib(device: torch.device) -> float:
    """Peak memory since `reset_peak`, GiB; where the system tells no more, the process's."""
    try:
        return peak_bytes(device) / 2**30
    except InputError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _pages(field: str) -> int:
    status = _PROCESS / "status"
    try:
        lines = status.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise InputError(f"no {field} in {status}: memory of a CPU's process is measured on Linux only")
