"""Which engine runs: chosen once, before any work."""

from __future__ import annotations

import importlib.util
import os

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


def resolve(backend: str, hidden: Tensor) -> str:
    """ "torch" or "triton"; ValueError where "triton" is asked for and cannot run."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is unknown; known are {', '.join(BACKENDS)}")
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


def rows_within(
    head: Head, workspace: int | None, backend: str, grad_filter: float | None = None
) -> int:
    """Rows of logits that a chunk may hold; backend as returned by `resolve`."""
    itemsize = 8 if head.weight.dtype == torch.float64 else 4
    if backend == "triton":
        from comal_kernels.engines.triton.engine import softened

        if softened(head, grad_filter):
            itemsize = head.weight.dtype.itemsize
    return chunk_rows(workspace, head.weight.shape[0], itemsize, head.weight.device)


def make_engine(
    backend: str,  # as returned by resolve
    head: Head,
    capacity: int,
    *,
    need_x: bool = False,
    need_weight: bool = False,
    need_bias: bool = False,
    grad_filter: float | None = None,
) -> Engine:
    """An engine for `head`; nothing is allocated before its first call."""
    if backend == "triton":
        from comal_kernels.engines.triton.engine import TritonEngine as Chosen
    else:
        from comal_kernels.engines.torch import TorchEngine as Chosen  # type: ignore[assignment]
    return Chosen(
        head,
        capacity,
        need_x=need_x,
        need_weight=need_weight,
        need_bias=need_bias,
        grad_filter=grad_filter,
    )
