"""Which engine computes a head's logits, in how much memory and how exactly."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from comal_kernels.engines.base import Engine
from comal_kernels.engines.workspace import chunk_rows
from comal_kernels.head import Head, compute_dtype

if TYPE_CHECKING:
    from comal_kernels.engines.statistics import StatisticsEngine

BACKENDS = ("auto", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = 8  # major number of the oldest GPU that Triton supports


def triton_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton would run its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Execution:
    """How a head's logits are computed and held: the options that both ops share."""

    SCHEMA: ClassVar[str] = "str backend, int? workspace, float? grad_filter"

    backend: str = "auto"  # of BACKENDS
    workspace: int | None = None  # bytes of logits held at a time; None: the device's default
    grad_filter: float | None = None  # probability below which gradients are left out

    def flat(self) -> tuple[str, int | None, float | None]:
        """As custom ops take it, in the order of SCHEMA; `Execution(*flat)` is the inverse."""
        return self.backend, self.workspace, self.grad_filter

    def resolved(self, hidden: Tensor) -> Execution:
        """Return the same with "auto" decided.

        Raises:
            ValueError: "triton" is asked for and cannot run, or `grad_filter` is and gains nothing.
        """
        backend = _resolve(self.backend, hidden)
        if self.grad_filter is not None and (hidden.is_cuda or backend == "triton"):
            raise ValueError(
                "grad_filter: it is for the torch backend on a CPU; on CUDA it takes longer than "
                "exact gradients do (89.7 ms against 47.2 ms on an H200); leave it out"
            )
        return replace(self, backend=backend)

    def rows(self, head: Head, count: int, weight_grad: bool) -> int:
        """Rows of logits that a chunk may hold of `count` in all, once resolved.

        Where one chunk holds them all, dW needs no float32 sums; what those would take may hold
        logits instead, so that no memory is lost by it, and products are larger.
        """
        weight = head.weight
        itemsize = 8 if weight.dtype == torch.float64 else 4
        spare = 0
        if self.backend == "triton":
            from comal_kernels.engines.triton.engine import softened

            if softened(head):
                itemsize = weight.dtype.itemsize
            if weight_grad and weight.dtype != torch.float32:
                spare = weight.numel() * 4
        vocab, device = weight.shape[0], weight.device
        rows = chunk_rows(self.workspace, vocab, itemsize, device)
        return max(rows, count) if count <= rows + spare // (vocab * itemsize) else rows

    def engine(self, head: Head, count: int, needs: Sequence[bool] = (False,) * 3) -> Engine:
        """An engine for `count` rows in all, once resolved; its memory is made on first use.

        needs: gradients of hidden, weight, bias.
        """
        need_x, need_weight, need_bias = needs
        options: dict[str, Any] = {"need_x": need_x, "need_weight": need_weight}
        options |= {"need_bias": need_bias}
        capacity = min(self.rows(head, count, need_weight), max(1, count))
        if self.backend == "triton":
            from comal_kernels.engines.triton.engine import TritonEngine

            return TritonEngine(head, capacity, single=count <= capacity, **options)
        from comal_kernels.engines.torch import TorchEngine

        return TorchEngine(head, capacity, grad_filter=self.grad_filter, **options)

    def statistics(
        self, head: Head, count: int, needs: Sequence[bool] = (False,) * 3
    ) -> StatisticsEngine:
        """What computes more than log-probs of `count` rows, once resolved."""
        need_x, need_weight, need_bias = needs
        options: dict[str, Any] = {"need_x": need_x, "need_weight": need_weight}
        options |= {"need_bias": need_bias}
        if self.backend == "triton":
            from comal_kernels.engines.triton.statistics import TritonStatistics

            capacity = min(self._raw_rows(head), max(1, count))
            return TritonStatistics(head, capacity, single=count <= capacity, **options)
        from comal_kernels.engines.torch_statistics import TorchStatistics

        return TorchStatistics(head, min(self._raw_rows(head), max(1, count)), **options)

    def _raw_rows(self, head: Head) -> int:
        """Rows of unrounded logits that a chunk may hold."""
        size, vocab = compute_dtype(head.weight.dtype).itemsize, head.weight.shape[0]
        return chunk_rows(self.workspace, vocab, size, head.weight.device)


def _resolve(backend: str, hidden: Tensor) -> str:  # → "torch" or "triton"
    if backend == "torch" or (backend == "auto" and not hidden.is_cuda):
        return "torch"
    why = _why_not_triton(hidden)
    if backend == "auto":
        return "torch" if why else "triton"
    if why:
        raise ValueError(f'backend: "triton" {why}; use "torch"')
    return "triton"


def _why_not_triton(hidden: Tensor) -> str | None:
    """Return why the Triton kernels can't run on these states, or None where they can."""
    if not triton_installed():
        return "needs the package triton, which is not installed"
    if hidden.dtype not in TRITON_DTYPES:
        return f"takes float32, bfloat16 or float16, not {hidden.dtype}"
    if not hidden.is_cuda:
        return (
            None
            if interpreted()
            else (
                f"needs CUDA tensors (hidden is on {hidden.device}), or TRITON_INTERPRET=1 in the "
                "environment before the first use"
            )
        )
    if torch.version.hip is not None:  # ROCm's devices are called CUDA in torch
        return "has kernels for NVIDIA GPUs alone, and this torch is built for ROCm"
    major, minor = torch.cuda.get_device_capability(hidden.device)
    if major < LEAST_CAPABILITY:
        wanted = f"{LEAST_CAPABILITY}.0 or newer"
        return f"needs a GPU of compute capability {wanted}, and this one has {major}.{minor}"
    return None
