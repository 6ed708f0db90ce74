"""What a run runs on: versions, device, ranks."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from comal_fast.errors import InputError
from comal_fast.system.ranks import world

PACKAGES = (
    "comal-fast", "comal-kernels", "torch", "triton", "transformers", "numpy", "peft",
    "bitsandbytes",
)  # fmt: skip
# Values of CUBLAS_WORKSPACE_CONFIG under which cuBLAS adds up in one order.
ONE_ORDER = (":4096:8", ":16:8")
_NO_ORDER = re.compile(r"(\S+) does not have a deterministic implementation")


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
    """Let every operator add up in one order from now on; call it before work on a GPU starts.

    With `warn_only`, attention's backward passes by torch's flash kernels would keep their atomic
    additions, so an operator that has no such way raises: see `named_nondeterminism`.

    Raises:
        InputError: CUBLAS_WORKSPACE_CONFIG is set to what lets cuBLAS choose the order.
    """
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ONE_ORDER[0])
    if workspace not in ONE_ORDER:
        raise InputError(
            f"training.deterministic: CUBLAS_WORKSPACE_CONFIG={workspace} lets cuBLAS add up in "
            f"any order; unset it, or set it to {' or '.join(ONE_ORDER)}"
        )
    torch.use_deterministic_algorithms(True)
    # Else new memory is swept, for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def named_nondeterminism() -> Iterator[None]:
    """Raise InputError, with the operator's name, for what can't add up in one order."""
    try:
        yield
    except RuntimeError as error:
        found = _NO_ORDER.search(str(error))
        if found is None:
            raise
        raise InputError(
            f"training.deterministic: torch's {found[1]} can't add up in one order on this device; "
            "leave training.deterministic out, or use a model and options that do without it"
        ) from error
