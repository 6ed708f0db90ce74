"""Arguments that launches share: the head's, and those of a kernel that holds its product."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.forward_kernels import (
    combine_kernel,
    partial_kernel,
    pick_kernel,
)
from comal_kernels.engines.triton.training_kernels import (
    scale_in_place_kernel,
    scale_kernel,
    soften_kernel,
)
from comal_kernels.head import Head

# Σ exp(z − shift) beyond these bounds has lost, or may have lost, what matters
LEAST, MOST = 1e-26, 1e26


@dataclass(frozen=True)
class Due:
    """Rows that are to be done again, where any are: both are read on the device alone."""

    rows: Tensor  # (n,) int32
    any: Tensor  # (1,) int32


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


def pick(head: Head, x: Tensor, target: Tensor) -> Tensor:
    """Logits (n,) float32 of x (n, H), contiguous, at target (n,)."""
    picks = x.new_empty(x.shape[0], dtype=torch.float32)
    width = x.shape[1]
    pick_kernel[(x.shape[0],)](
        x=x,
        weight=head.weight,
        target=target,
        picks=picks,
        width=width,
        stride_x=x.stride(0),
        stride_w=head.weight.stride(0),
        BLOCK_H=min(tuning.PICK_BLOCK, triton.next_power_of_2(width)),
        **epilogue_arguments(head),
    )
    return picks


def soften(
    head: Head, x: Tensor, shift: Tensor, soft: Tensor | None, due: Due | None = None
) -> Tensor:
    """Σ exp(z − shift) (n,) of x (n, H), contiguous; exp(z − shift) goes into `soft` (n, V).

    With `due`, blocks of rows with none due are left alone, and their sums are not to be read.
    """
    n, vocab = x.shape[0], head.weight.shape[0]
    tile, even = choose_tile(tuning.SOFTEN, head, x)
    tiles = triton.cdiv(vocab, tile.block_v)
    totals = shift.new_empty(tiles, n)
    count = triton.cdiv(n, tile.block_n) * tiles
    out: Any = x if soft is None else soft
    if tile.tma and soft is not None:
        out = TensorDescriptor.from_tensor(soft, [tile.block_n, tile.block_v // 2])
    soften_kernel[(min(count, processors(x.device)) if tile.persistent else count,)](
        shift=shift,
        due=shift if due is None else due.rows,
        any_due=shift if due is None else due.any,
        soft=out,
        totals=totals,
        stride=0 if soft is None else soft.stride(0),
        FLATTEN=tile.persistent and due is None,
        GROUP=tuning.GROUP,
        EVEN_V=vocab % tile.block_v == 0,
        STORE=soft is not None,
        SOME=due is not None,
        **product_arguments(head, x, tile, even),
        **epilogue_arguments(head),
    )
    return totals.sum(0)


def log_sum_exp(head: Head, x: Tensor, due: Due) -> Tensor:
    """Log-sum-exps (n,) of x (n, H), contiguous, whatever the logits' size; of rows due alone."""
    n = x.shape[0]
    tile, even = choose_tile(tuning.FORWARD, head, x)
    blocks, tiles = triton.cdiv(n, tile.block_n), triton.cdiv(head.weight.shape[0], tile.block_v)
    splits, each = tuning.split_vocabulary(blocks, tiles, processors(x.device))
    tops, totals = x.new_empty(2, splits, n, dtype=torch.float32).unbind(0)
    partial_kernel[(blocks, splits)](
        due=due.rows,
        any_due=due.any,
        tops=tops,
        totals=totals,
        split_tiles=each,
        **product_arguments(head, x, tile, even),
        **epilogue_arguments(head),
    )
    lse = x.new_empty(n, dtype=torch.float32)
    combine_kernel[(triton.cdiv(n, tuning.COMBINE_ROWS),)](
        due.any,
        tops,
        totals,
        lse,
        n,
        splits,
        BLOCK_N=tuning.COMBINE_ROWS,
        BLOCK_S=tuning.COMBINE_SPLITS,
    )
    return lse


def settle(head: Head, x: Tensor, shift: Tensor, soft: Tensor | None) -> tuple[Tensor, Tensor]:
    """(shift, Σ exp(z − shift)), (n,) each, of x (n, H); exp(z − shift) goes into `soft` (n, V).

    A row whose sum overflows, or vanishes, is measured from its log-sum-exp instead. Whether there
    is one is known on the device alone: launches for none return at once.
    """
    shift = torch.where(shift.isfinite(), shift, 0.0)
    total = soften(head, x, shift, soft)
    far = ~((total > LEAST) & (total < MOST))  # or not a number
    due = Due(far.int(), far.any().int())
    shift = torch.where(far, log_sum_exp(head, x, due), shift)
    again = torch.ones_like(total) if soft is None else soften(head, x, shift, soft, due)
    return shift, torch.where(far, again, total)


def scale(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x (…, width), contiguous, times a factor () or (rows,): multiplied in float32, in `dtype`."""
    out = torch.empty_like(x, dtype=dtype)
    width = x.shape[-1] if x.dim() else 1
    block = min(tuning.EPILOGUE_BLOCK, triton.next_power_of_2(width))
    scale_kernel[(x.numel() // width, triton.cdiv(width, block))](
        x, factor, out, width, min(1, factor.dim()), BLOCK=block, num_warps=4
    )
    return out


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """Multiply x, contiguous, by factor (), which is read on the device alone."""
    blocks = triton.cdiv(x.numel(), tuning.EPILOGUE_BLOCK)
    grid = (min(blocks, tuning.SCALE_PROGRAMS * processors(x.device)),)
    scale_in_place_kernel[grid](x, factor, x.numel(), BLOCK=tuning.EPILOGUE_BLOCK, num_warps=4)
