"""Variable-length kernels: one launch for all segments, keys gathered where a prefix is shared.

A segment of n queries and m ≥ n keys is causal aligned at the bottom right, as flash-attn has it
since 2.1: query i sees the keys j ≤ i + m − n.
"""

from __future__ import annotations

import inspect
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from comal_kernels.attention.layout import Engine, Layout, Options
from comal_kernels.errors import ModelError
from comal_kernels.transfer import to_device, to_devices


class Kernel(Protocol):
    """softmax(q kᵀ · scale) v within sequences, causal as above."""

    def __call__(
        self,
        q: Tensor,  # (T, heads, D)
        k: Tensor,  # (K, kv_heads, D)
        v: Tensor,  # (K, kv_heads, D)
        bounds: Bounds,
        options: Options,
    ) -> Tensor:  # (T, heads, D)
        """The attention of all sequences."""


class Bounds(NamedTuple):
    """Where the S sequences lie among the queries and among the keys."""

    cu_q: Tensor  # (S + 1,) int32
    cu_k: Tensor  # (S + 1,) int32
    max_q: int
    max_k: int


def varlen(kernel: Kernel) -> Engine:
    """The engine that a kernel makes."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, layout: Layout, options: Options
    ) -> Tensor:
        bounds, index = layout.once("varlen", lambda: _prepare(layout))
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if index is not None:
            k, v = _Gather.apply(k, index), _Gather.apply(v, index)
        return kernel(q, k, v, bounds, options)[None]

    return attend


def _prepare(layout: Layout) -> tuple[Bounds, Tensor | None]:
    """Bounds, and the positions (K,) of the keys: prefix and own of every segment in turn.

    No positions where nothing is shared: then the keys are the row as it is.
    """
    queries = [s.queries for s in layout.segments]
    keys = [s.keys for s in layout.segments]
    edges = [torch.tensor([0, *accumulate(n)], dtype=torch.int32) for n in (queries, keys)]
    cu_q, cu_k = to_devices(edges, layout.device)
    index = None
    if keys != queries:
        parts = [torch.arange(*r) for s in layout.segments for r in (s.prefix, (s.start, s.stop))]
        index = to_device(torch.cat(parts), layout.device)
    return Bounds(cu_q, cu_k, max(queries), max(keys)), index


class _Gather(torch.autograd.Function):
    """Rows by index; the gradients of a row that is taken more than once add up in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.rows, *gradient.shape[1:], dtype=dtype)
        return total.index_add_(0, index, gradient.to(dtype)).to(gradient.dtype), None


def flash(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """Attention by flash-attn's kernel (≥ 2.6, for its soft-capping)."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q,
        k,
        v,
        *bounds,
        dropout_p=options.dropout,
        softmax_scale=options.scale,
        causal=True,
        window_size=(-1 if options.window is None else options.window - 1, 0),
        softcap=options.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def torch_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """Attention by torch's kernel. ModelError for soft-capping and dropout, which it has not."""
    from torch.nn.attention.varlen import varlen_attn

    for value, name in ((options.softcap, "soft-capping"), (options.dropout, "dropout")):
        if value:
            raise ModelError(f"attn_implementation: torch_varlen has no attention {name}")
    heads: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _parameters(varlen_attn) else {}
    window = (-1 if options.window is None else options.window - 1, 0)  # (−1, 0) is causal
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, *bounds, scale=options.scale, window_size=window, **heads
    )


def torch_has_varlen() -> bool:
    """Whether this torch's kernel has a scale and windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size"} <= _parameters(varlen_attn)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
