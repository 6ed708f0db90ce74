"""AdamW as one Triton kernel: moments in 8 bits or in floating point, the norm, and the rounding.

A program updates ROWS blocks of 256 elements, one block a warp, eight elements a thread. It reads
weights, gradients and moments once, does everything else in registers in float32, and writes
weights and moments once: about 10 bytes a parameter with bfloat16 weights and 8-bit moments.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
    w ← (1 − lr · λ) w − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

An 8-bit moment is a code times the largest size in its block. The codes are bitsandbytes' dynamic
map (arXiv 2110.02861), whose smallest code of the second moment is half of the next one instead of
zero. The map is a decimal floating-point format: decade e of s + 1 holds 2ᵉ evenly spaced levels.
Level q has e = ⌊log₂ q⌋, and with the mantissa m = (q + ½) / 2ᵉ, which float32 holds as such,

    value(q) = 10^(e − s) · (0.1 + 0.9 (m − 1))

so that decoding reads e and m from the bits of a float, and encoding finds the decade with three
comparisons and then the level with one multiply-add. Neither loads a table.

The 16 random bits of an element depend on the seed and on its position in the whole parameter, so
neither slices nor shards nor a resumed run change them.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # elements that share a scale
ROWS = 4  # blocks of a program, and its warps


@triton.jit
def decode(code, SIGNED: tl.constexpr):
    """Return the float32 value of each uint8 code, in [-1, 1] where SIGNED, else in (0, 1]."""
    whole = (code.to(tl.int32) | 0x4B800000).to(tl.float32, bitcast=True)  # 2²⁴ + 2 · code
    # twice q + ½, exactly: its exponent is e + 1, its mantissa m
    if SIGNED:
        twice = whole - 16777470.0  # 2 (code − 127): the level with its sign
        level = tl.abs(twice) + 1.0
    else:
        level = whole - 16777213.0  # 2 (code + 1) + 1
    bits = level.to(tl.int32, bitcast=True)
    rest = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    # 7 − e decades below the highest one, bit by bit; SIGNED has one decade less
    value = rest * 9.0 + 1.0 if SIGNED else rest * 0.9 + 0.1
    value = tl.where((bits & (1 << 23)) != 0, value, value * 1e-1)
    value = tl.where((bits & (2 << 23)) != 0, value, value * 1e-2)
    value = tl.where((bits & (4 << 23)) != 0, value, value * 1e-4)
    if SIGNED:
        value = tl.minimum(tl.minimum(value, 1.0), tl.abs(twice))  # the highest level, and level 0
        sign = twice.to(tl.int32, bitcast=True) & -2147483648
        value = (value.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    else:
        value = tl.maximum(value, 1.625e-7)  # the lowest level
        value = tl.maximum(value, (level - 413.0) * 0.01)  # the highest one: 1
    return value


@triton.jit
def encode(x, SIGNED: tl.constexpr):
    """Return the uint8 code whose value is nearest to each x, in [-1, 1] where SIGNED."""
    size = tl.abs(x) if SIGNED else x
    # the decade: 0.1 ≤ mantissa < 1, and its number of levels
    mantissa = size
    levels = tl.full(x.shape, 64.0 if SIGNED else 128.0, tl.float32)
    levels = tl.where(mantissa < 1e-4, levels * 0.0625, levels)
    mantissa = tl.where(mantissa < 1e-4, mantissa * 1e4, mantissa)
    levels = tl.where(mantissa < 1e-2, levels * 0.25, levels)
    mantissa = tl.where(mantissa < 1e-2, mantissa * 1e2, mantissa)
    levels = tl.where(mantissa < 1e-1, levels * 0.5, levels)
    mantissa = tl.where(mantissa < 1e-1, mantissa * 10.0, mantissa)
    # q is the floor of this, but near a decade's lower end the level below is nearer
    place = (mantissa * (1 / 0.9) + 0.8 / 0.9) * levels
    place = tl.minimum(place, place * 2.0 - (levels + 0.4))  # equal to it from levels + 0.4 on
    top = 64.0 if SIGNED else 128.0
    place = tl.maximum(place, x * (4 * top) - (2 * top - 0.9))  # above the highest midpoint
    # floats of 2²³ and more are whole numbers, whose low byte is the code
    if SIGNED:
        place = tl.maximum(place, size * 100.0 + (1 - 2.75e-5))  # above the lowest midpoint
        floor = place - 0.5
        moved = tl.where(x < 0, -floor, floor) + 8388991.0  # 2²³ + 256 + 127
    else:
        place = tl.where(size < 2.4375e-7, 1.5, place)  # below the lowest midpoint
        moved = place - 0.5 + 8388863.0  # 2²³ + 256 − 1
    return moved.to(tl.int32, bitcast=True).to(tl.uint8)


@triton.jit
def load_moment(codes, scales, offset, row, live, live_row, SIGNED: tl.constexpr):
    """Return (ROWS, BLOCK) float32 a moment: its codes times their scales, if it has scales."""
    stored = tl.load(codes + offset, mask=live, other=0)
    if scales is None:
        moment = stored.to(tl.float32)
    else:
        scale = tl.load(scales + row, mask=live_row, other=0.0)
        moment = decode(stored, SIGNED) * scale[:, None]
    return moment


@triton.jit
def store_moment(moment, codes, scales, offset, row, live, live_row, SIGNED: tl.constexpr):
    """Write (ROWS, BLOCK) a moment in the form in which `load_moment` reads it."""
    if scales is None:
        tl.store(codes + offset, moment.to(codes.dtype.element_ty), mask=live)
    else:
        scale = tl.max(tl.abs(moment) if SIGNED else moment, 1)
        inverse = tl.where(scale >= 1.1754944e-38, 1.0 / scale, 0.0)  # a denormal scale: zeros
        tl.store(codes + offset, encode(moment * inverse[:, None], SIGNED), mask=live)
        tl.store(scales + row, scale, mask=live_row)


@triton.jit
def round_stochastically(x, seed, counter):
    """Return (R, 8 C) bfloat16 x rounded up or down at random, so that the mean of each is x.

    counter (R, C) int64: the random number generator's counter for each eight elements of a row.
    """
    a, b, c, d = tl.randint4x(seed, counter)
    words = tl.join(tl.join(a, b), tl.join(c, d)).to(tl.uint32, bitcast=True)
    noise = tl.join(words & 0xFFFF, words >> 16).reshape(x.shape)
    noise = tl.where(x == x, noise, 0)  # a NaN of all ones would carry into the sign
    bits = x.to(tl.uint32, bitcast=True) + noise
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit(do_not_specialize=["first", "seed"])
def adamw_kernel(
    weights,  # (num_elements,) updated
    gradient,  # (num_elements,)
    exp_avg,  # (num_elements,) updated: uint8 codes where there are scales, else floating point
    exp_avg_sq,
    exp_avg_scale,  # (num_elements / BLOCK,) float32, updated, or None
    exp_avg_sq_scale,
    squares,  # (⌈num_elements / BLOCK⌉,) float32 out: Σ g² of each block, or None
    divisor,  # () float32: of the gradient, or None
    num_elements,
    first,  # position of the first element in the whole parameter, a multiple of 8
    seed,
    keep,  # 1 − lr · λ
    rate,  # lr / (1 − β₁ᵗ)
    beta1,
    gain1,  # 1 − β₁
    beta2,
    gain2,  # 1 − β₂
    root,  # 1 / √(1 − β₂ᵗ)
    eps,
    ROUNDED: tl.constexpr,  # stochastically, to bfloat16
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    live_row = row * BLOCK < num_elements
    offset = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    live = offset < num_elements

    g = tl.load(gradient + offset, mask=live, other=0.0).to(tl.float32)
    w = tl.load(weights + offset, mask=live, other=0.0).to(tl.float32)
    m = load_moment(exp_avg, exp_avg_scale, offset, row, live, live_row, True)
    v = load_moment(exp_avg_sq, exp_avg_sq_scale, offset, row, live, live_row, False)

    if squares is not None:
        tl.store(squares + row, tl.sum(g * g, 1), mask=live_row)
    if divisor is not None:
        g = g * (1.0 / tl.load(divisor))
    m = m * beta1 + gain1 * g
    v = v * beta2 + gain2 * g * g
    w = w * keep - rate * (m / (tl.sqrt(v) * root + eps))

    if ROUNDED:
        eighths = (first + start * BLOCK) // 8 + tl.arange(0, ROWS)[:, None] * (BLOCK // 8)
        w = round_stochastically(w, seed, eighths + tl.arange(0, BLOCK // 8)[None, :])
    tl.store(weights + offset, w.to(weights.dtype.element_ty), mask=live)
    store_moment(m, exp_avg, exp_avg_scale, offset, row, live, live_row, True)
    store_moment(v, exp_avg_sq, exp_avg_sq_scale, offset, row, live, live_row, False)


def update_slice(
    weights: Tensor,
    gradient: Tensor,
    state: Mapping[str, Tensor],
    *,
    step: int,
    group: Mapping[str, Any],
    first: int = 0,
    seed: int | None = None,
    divisor: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:
    """Make the step-th AdamW update of a slice of a parameter.

    Args:
        weights: (n,) contiguous, updated in place.
        gradient: (n,) contiguous, in any floating-point dtype.
        state: `exp_avg` and `exp_avg_sq` (n,), updated in place. Where they are uint8, n is a
            multiple of BLOCK, and `exp_avg_scale` and `exp_avg_sq_scale` (n / BLOCK,) hold the
            largest size of each block.
        step: the number of the update, counted from 1.
        group: holds `lr`, `betas`, `eps` and `weight_decay`.
        first: position of the first element in the whole parameter, a multiple of 8.
        seed: of the stochastic rounding, in 63 bits; None rounds to nearest.
        divisor: () float32, by which the gradient is divided first.
        squares: (⌈n / BLOCK⌉,) float32, receives the sum of squares of each block of the gradient
            before that division.
    """
    beta1, beta2 = group["betas"]
    rounded = seed is not None and weights.dtype is torch.bfloat16
    with torch.cuda.device_of(weights):
        adamw_kernel[(triton.cdiv(weights.numel(), ROWS * BLOCK),)](
            weights,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            state.get("exp_avg_scale"),
            state.get("exp_avg_sq_scale"),
            squares,
            divisor,
            weights.numel(),
            first,
            seed or 0,
            1 - group["lr"] * group["weight_decay"],
            group["lr"] / (1 - beta1**step),
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            (1 - beta2**step) ** -0.5,
            group["eps"],
            ROUNDED=rounded,
            ROWS=ROWS,
            BLOCK=BLOCK,
            num_warps=ROWS,
        )
