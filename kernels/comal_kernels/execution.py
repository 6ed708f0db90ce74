"""Which engine computes a head's logits, in how much memory and how exactly."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from comal_kernels.engines.base import Engine
from comal_kernels.engines.workspace import chunk_rows
from comal_kernels.head import Head

BACKENDS = ("auto", "torch", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
        """The same with "auto" decided; ValueError where "triton" is asked for and cannot run."""
        return replace(self, backend=_resolve(self.backend, hidden))

    def rows(self, head: Head) -> int:
        """Rows of logits that a chunk may hold, once resolved."""
        weight = head.weight
        itemsize = 8 if weight.dtype == torch.float64 else 4
        if self.backend == "triton":
            from comal_kernels.engines.triton.engine import softened

            if softened(head, self.grad_filter):
                itemsize = weight.dtype.itemsize
        return chunk_rows(self.workspace, weight.shape[0], itemsize, weight.device)

    def engine(self, head: Head, count: int, needs: Sequence[bool] = (False,) * 3) -> Engine:
        """An engine for `count` rows in all, once resolved; its memory is made on first use.

        needs: gradients of hidden, weight, bias.
        """
        if self.backend == "triton":
            from comal_kernels.engines.triton.engine import TritonEngine as Chosen
        else:
            from comal_kernels.engines.torch import TorchEngine as Chosen  # type: ignore[assignment]
        need_x, need_weight, need_bias = needs
        return Chosen(
            head,
            min(self.rows(head), max(1, count)),
            need_x=need_x,
            need_weight=need_weight,
            need_bias=need_bias,
            grad_filter=self.grad_filter,
        )


def _resolve(backend: str, hidden: Tensor) -> str:  # → "torch" or "triton"
    installed = importlib.util.find_spec("triton") is not None
    if backend == "auto":
        fits = hidden.is_cuda and installed and hidden.dtype in TRITON_DTYPES
        return "triton" if fits else "torch"
    if backend == "triton":
        if not installed:
            raise ValueError('backend: "triton" needs the package triton, which is not installed')
        if hidden.dtype not in TRITON_DTYPES:
            raise ValueError(
                f'backend: "triton" takes float32, bfloat16 or float16, not {hidden.dtype}; '
                'use "torch"'
            )
        if not hidden.is_cuda and not interpreted():
            raise ValueError(
                f'backend: "triton" needs CUDA tensors (hidden is on {hidden.device}), or '
                'TRITON_INTERPRET=1 in the environment before the first use; use "torch"'
            )
    return backend
