"""The allocators: settings for long work on a CPU, and memory that is given back."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys

import torch

# In the order in which torch reads them.
_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# Segments that grow leave no gaps between tensors of many sizes. A larger pinned buffer has its own
# size, not the next power of two, and is not kept once freed. To stop the rounding alone
# (pinned_max_round_threshold_mb) would be wrong: until pytorch#192722 a freed buffer is then handed
# out for a larger one.
_EXPANDABLE, _EXACT_PINNED = "expandable_segments:True", "pinned_max_cached_size_mb:16"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Reuse freed tensors' pages: by default glibc returns large ones, and each fault costs anew.

    Nothing happens where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def configure_cuda_allocator() -> None:
    """Set what keeps memory whole on a GPU; call it before work there starts.

    Set for this process alone, not in the environment: vLLM's own process refuses growing segments.
    A release of torch that does not know a setting goes without it.
    """
    given = next((os.environ[name] for name in _VARIABLES if name in os.environ), "")
    setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if setter is None:
        return
    for wanted in ((_EXPANDABLE, _EXACT_PINNED), (_EXPANDABLE,)):
        settings = merge_settings(given, wanted)
        if settings == given:
            return
        try:
            setter(settings)
            return
        except (RuntimeError, ValueError):
            continue


def merge_settings(given: str, wanted: tuple[str, ...]) -> str:
    """Return the user's allocator settings with those of `wanted` whose keys they leave open.

    Another allocator's (`backend:cudaMallocAsync`) are returned as they are; growing segments are
    for CUDA on Linux.
    """
    keys = set(re.findall(r"(?:^|,)\s*(\w+)\s*:", given))
    if "backend" in keys:
        return given
    can_grow = sys.platform == "linux" and torch.version.hip is None
    added = [
        setting
        for setting in wanted
        if setting.split(":")[0] not in keys and (can_grow or setting != _EXPANDABLE)
    ]
    return ",".join([*filter(None, [given]), *added])


def give_back(device: torch.device) -> None:
    """Let go of what nobody holds any more, on the GPU too: what comes next has room for it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
