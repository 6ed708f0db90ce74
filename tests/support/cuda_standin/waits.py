"""What makes the host wait for the device, by the line of the project that asked for it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tuple(str(ROOT / name) for name in ("comal_fast", "kernels", "bench"))
aten = torch.ops.aten
SIZED_BY_VALUES = {  # the host must know how much came out
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "_local_scalar_dense",
}  # fmt: skip


def place() -> str:
    """file:line of the innermost frame that is the project's; of what called torch otherwise."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PROJECT):
            return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def interpreted() -> bool:
    """Whether Triton's interpreter asks: it copies a kernel's tensors, as no GPU has to."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(PROJECT):
        if frame.f_code.co_filename.endswith("triton/runtime/interpreter.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Waits(TorchDispatchMode):
    """Within the block, `counts`: (what waits, where) → how often."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self._tensor = torch.tensor

    def __enter__(self) -> Waits:
        def tensor(*given: Any, device: Any = None, **named: Any) -> Tensor:  # no mode sees it copy
            if _to_cuda(device):
                self.counts["copy to the device", place()] += 1
            return self._tensor(*given, device=device, **named)

        torch.tensor = tensor
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self._kind(func, args, kwargs)
        if kind is not None and not interpreted():
            self.counts[kind, place()] += 1
        return func(*args, **kwargs)

    def _kind(self, func: Any, args: Any, kwargs: Any) -> str | None:
        name = func._schema.name.removeprefix("aten::")
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(x.is_cuda for x in leaves) and not _to_cuda(kwargs.get("device")):
            return None
        if name in SIZED_BY_VALUES:
            return "item" if name == "_local_scalar_dense" else name
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            return "repeat_interleave without output_size"
        if name in ("index", "index_put_", "_index_put_impl_", "_unsafe_index"):
            indices = [x for x in args[1] if x is not None]
            if any(not x.is_cuda for x in indices):
                return "index from the host"
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                return "index by a mask"
        if name == "_to_copy":
            device = kwargs.get("device")
            return _copies(args[0], device, kwargs.get("non_blocking", False))
        if name == "copy_":
            late = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            return _copies(args[1], args[0].device, late, args[0])
        return None


def _to_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _copies(source: Tensor, device: Any, late: bool, target: Tensor | None = None) -> str | None:
    if device is None or torch.device(device).type == source.device.type:
        return None
    way = "to the host" if source.is_cuda else "to the device"
    memory = target if source.is_cuda else source
    if late and memory is not None and memory.is_pinned():
        return None
    return f"copy {way}" + (" from pageable memory" if late else "")
