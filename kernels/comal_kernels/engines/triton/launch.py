"""Arguments that launches share: the head's, and those of a kernel that holds its product."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.forward_kernels import combine_kernel
from comal_kernels.head import Head


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; on a CPU, where kernels are interpreted, a few."""
    if device.type != "cuda":
        return 4  # enough for several splits
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability × 10; what is interpreted passes for Hopper."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def epilogue_arguments(head: Head) -> dict[str, Any]:
    """The head's arguments of a kernel that calls `final_logits`, by name."""
    return {
        "bias": head.weight if head.bias is None else head.bias.contiguous(),
        "inner": head.inner,
        "outer": head.outer,
        "HAS_BIAS": head.bias is not None,
        "SOFTCAP": head.softcap is not None,
    }


def choose_tile(table: dict[int, tuning.Table], head: Head, x: Tensor) -> tuple[tuning.Tile, bool]:
    """The tile for this head and states x (n, H) contiguous, and whether BLOCK_H divides H."""
    weight = head.weight
    sizes = (weight.shape[1], weight.stride(0), weight.data_ptr(), x.data_ptr())
    aligned = all(size % 16 == 0 for size in sizes)
    plain = head.bias is None and head.softcap is None
    arch = architecture(weight.device)
    return tuning.choose(table, arch, x.dtype, weight.shape[1], aligned, plain)


def product_arguments(head: Head, x: Tensor, tile: tuning.Tile, even: bool) -> dict[str, Any]:
    """Arguments by name of a kernel that calls `product`: x (n, H) contiguous, weight (V, H)."""
    weight = head.weight
    factors: tuple[Any, Any] = (x, weight)
    if tile.tma:
        factors = (
            TensorDescriptor.from_tensor(x, [tile.block_n, tile.block_h]),
            TensorDescriptor.from_tensor(weight, [tile.block_v, tile.block_h]),
        )
    return {
        "x": factors[0],
        "weight": factors[1],
        "n": x.shape[0],
        "vocab": weight.shape[0],
        "width": weight.shape[1],
        "stride_x": x.stride(0),
        "stride_w": weight.stride(0),
        "EVEN": even and not tile.tma,
        "TMA": tile.tma,
        "PRECISION": "ieee",
        "BLOCK_N": tile.block_n,
        "BLOCK_V": tile.block_v,
        "BLOCK_H": tile.block_h,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def combine(tops: Tensor, totals: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Partial results (splits, n) each → log-probs and log-sum-exps (n,) float32."""
    splits, n = tops.shape
    logp, lse = tops.new_empty(2, n).unbind(0)
    combine_kernel[(triton.cdiv(n, tuning.COMBINE_ROWS),)](
        tops,
        totals,
        picks,
        logp,
        lse,
        n,
        splits,
        BLOCK_N=tuning.COMBINE_ROWS,
        BLOCK_S=tuning.COMBINE_SPLITS,
    )
    return logp, lse
