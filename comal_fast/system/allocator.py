"""The allocators: settings for long work on a CPU, and memory that is given back."""

from __future__ import annotations

import ctypes
import gc

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Reuse freed tensors' pages: by default glibc returns large ones, and each fault costs anew.

    Nothing happens where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back(device: torch.device) -> None:
    """Let go of what nobody holds any more, on the GPU too: what comes next has room for it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
