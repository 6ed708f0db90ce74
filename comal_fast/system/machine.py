"""What a run runs on: versions, device, ranks."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from comal_fast.system.ranks import world

PACKAGES = (
    "comal-fast", "comal-kernels", "torch", "triton", "transformers", "numpy", "peft",
    "bitsandbytes",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Package → version, of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """The accelerator's name, or `cpu` with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, ranks, threads and the command, as env.json holds them."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "device": device_name(device),
        "ranks": world(),
        "threads": torch.get_num_threads(),
        "command": ["comal-fast", *sys.argv[1:]],
    }


def sum_in_one_order() -> None:
    """No atomic additions on the GPU, nor products that are split at will; before its first one.

    torch warns of an operator that has no such way.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # else new memory is swept, for nothing
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
