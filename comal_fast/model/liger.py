"""Liger's kernels for a model's norms, positions and gated MLPs (arXiv 2410.10989), on CUDA.

Never its cross entropy: the loss is `comal_kernels`'. Exact up to rounding.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from comal_fast.errors import InputError
from comal_fast.model.residual_norm import fuse_residual_norms

KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
_STOCK: dict[str, dict[str, Any]] = {}  # module → what `apply` replaced in it
LEFT = {"layer_norm": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def why_not(family: str, device: torch.device) -> str | None:
    """What keeps Liger from a model of this `model_type`; None: nothing."""
    if device.type != "cuda":
        return f"needs CUDA, and the model is on {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "needs the package liger-kernel; pip install 'comal-fast[gpu]'"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    known = family in MODEL_TYPE_TO_APPLY_LIGER_FN
    return None if known else f"has no kernels for models of type {family}"


def use_liger(model: Any, requested: str, device: torch.device, fuse_residual: bool = True) -> Any:
    """Return the model with Liger's kernels in it, where they are wanted and can be had.

    Args:
        model: A causal language model of transformers.
        requested: `model.liger_kernels`.
        device: Where the model is, or will be.
        fuse_residual: Let layers add and normalise in one kernel too (`residual_norm.py`).

    Raises:
        InputError: They are asked for (`on`) and can't be had.
    """
    if requested == "off":
        return model
    why = why_not(model.config.model_type, device)
    if why is None:
        apply(model)
        if fuse_residual:
            fuse_residual_norms(model)
    elif requested == "on":
        raise InputError(f"model.liger_kernels: on {why}")
    return model


def apply(model: Any) -> None:
    """Put the kernels into a loaded model, and into the module of transformers that it is from.

    Its layers look there for the kernel of the positions; `stock_layers` undoes that for a while.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    module = vars(sys.modules[type(model).__module__])
    before = dict(module)
    _apply_liger_kernel_to_instance(model, **KERNELS, **LEFT)
    originals = _STOCK.setdefault(module["__name__"], {})
    for name, original in before.items():
        if module[name] is not original:
            originals.setdefault(name, original)


@contextmanager
def stock_layers() -> Iterator[None]:
    """Build and run models of transformers' own layers within the block, whatever `apply` did."""
    patched: dict[str, dict[str, Any]] = {}
    for name, originals in _STOCK.items():
        module = vars(sys.modules[name])
        patched[name] = {key: module[key] for key in originals}
        module.update(originals)
    try:
        yield
    finally:
        for name, kernels in patched.items():
            vars(sys.modules[name]).update(kernels)
