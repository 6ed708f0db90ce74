"""Variable-length kernels: one launch for all segments, keys gathered where a prefix is shared.

A segment of n queries and m ≥ n keys is causal aligned at the bottom right, as flash-attn has it
since 2.1: query i sees the keys j ≤ i + m − n.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from comal_kernels.attention.layout import Engine, Layout, Options
from comal_kernels.errors import ModelError
from comal_kernels.gather import gather_rows
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
            k, v = (gather_rows(x, index, in_order=False) for x in (k, v))
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


def flash_3(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """Compute attention by FlashAttention 3 (arXiv 2407.08608).

    Raises:
        ModelError: The layer asks for attention dropout, which the kernel does not have.
    """
    from flash_attn_interface import flash_attn_varlen_func

    window = (-1 if options.window is None else options.window - 1, 0)
    return _call_flash(flash_attn_varlen_func, q, k, v, bounds, options, window)


def flash_4(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """Compute attention by FlashAttention 4, which says None for no window.

    Raises:
        ModelError: The layer asks for attention dropout, which the kernel does not have.
    """
    from flash_attn.cute import flash_attn_varlen_func

    window = (None if options.window is None else options.window - 1, 0)
    return _call_flash(flash_attn_varlen_func, q, k, v, bounds, options, window)


def _call_flash(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Bounds,
    options: Options,
    window: tuple[int | None, int],
) -> Tensor:
    """Call the function of FlashAttention 3 or 4 by the argument names that both have."""
    _refuse_dropout(options)
    found = function(
        q,
        k,
        v,
        cu_seqlens_q=bounds.cu_q,
        cu_seqlens_k=bounds.cu_k,
        max_seqlen_q=bounds.max_q,
        max_seqlen_k=bounds.max_k,
        softmax_scale=options.scale,
        causal=True,
        window_size=window,
        softcap=options.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    # FlashAttention 4 and early releases of 3 return the log-sum-exp too.
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


def torch_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, options: Options) -> Tensor:
    """Attention by torch's kernel. ModelError for soft-capping and dropout, which it has not."""
    from torch.nn.attention.varlen import varlen_attn

    _refuse_dropout(options)
    if options.softcap:
        raise ModelError("attn_implementation: torch_varlen has no attention soft-capping")
    heads: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _parameters(varlen_attn) else {}
    window = (-1 if options.window is None else options.window - 1, 0)  # (−1, 0) is causal
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, *bounds, scale=options.scale, window_size=window, **heads
    )


def _refuse_dropout(options: Options) -> None:
    """Raise ModelError where a layer asks for attention dropout."""
    if options.dropout:
        raise ModelError("attn_implementation: only flash_attention_2 and sdpa have dropout")


# Where an engine's function is, and the arguments without which its release is too old.
FUNCTIONS: dict[str, tuple[str, str, set[str]]] = {
    "flash_attention_3": (
        "flash_attn_interface",
        "flash_attn_varlen_func",
        {"window_size", "softcap", "deterministic"},
    ),
    "flash_attention_4": (
        "flash_attn.cute",
        "flash_attn_varlen_func",
        {"max_seqlen_q", "max_seqlen_k", "softcap", "deterministic"},
    ),
    "flash_attention_2": ("flash_attn", "flash_attn_varlen_func", {"softcap", "deterministic"}),
    "torch_varlen": ("torch.nn.attention.varlen", "varlen_attn", {"scale", "window_size"}),
}


@cache  # a package that can't be imported would be tried again at every pass
def is_installed(engine: str) -> bool:
    """Return whether an engine of FUNCTIONS can be imported, in a release that is new enough.

    A folder `flash_attn` does not tell: FlashAttention 4 is a part of it, with or without 2.
    """
    module, name, needed = FUNCTIONS[engine]
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return needed <= _parameters(function)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)
