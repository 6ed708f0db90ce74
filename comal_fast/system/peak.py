"""Peak memory of a phase: of PyTorch's allocator on a GPU, of the process's pages on a CPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def reset_peak(device: torch.device) -> None:
    """Begin a phase. Where the system can't (no Linux, or not allowed) the peak goes on rising."""
    if device.type == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): resets the high-water mark
    except OSError:
        return


def peak_gib(device: torch.device) -> float:
    """The highest since `reset_peak`, GiB. On a CPU freed pages that the process keeps count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
