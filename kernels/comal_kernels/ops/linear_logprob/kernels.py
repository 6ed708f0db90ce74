"""Triton: head product, online log-sum-exp and target gather in one kernel; logits stay on chip.

Rows × slices of the vocabulary, then a small second kernel over the slices: no atomics, so the
result is bit-identical from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl


@triton.jit
def final_logits(z, bias, inner, outer, SOFTCAP: tl.constexpr):
    """z, bias: raw product and bias, float32. The order of `Head`."""
    z = (z + bias) * inner
    if SOFTCAP:
        # tanh: exp of a non-positive number cannot overflow; the series near 0, where 1 − e cancels
        e = tl.exp(-2.0 * tl.abs(z))
        t = (1.0 - e) / (1.0 + e)
        q = z * z
        small = z * (1.0 + q * (-0.33333333 + q * (0.13333333 - q * 0.053968254)))
        z = outer * tl.where(q < 0.04, small, tl.where(z < 0, -t, t))
    return z


@triton.jit
def fold(top, total, z):
    """Online log-sum-exp over axis 1: (n,) (n,) (n, v) → new top and Σ exp(· − top), (n,) each."""
    new = tl.maximum(top, tl.max(z, 1))
    # a row of nothing but −inf so far would give inf − inf
    safe = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(top - safe) + tl.sum(tl.exp(z - safe[:, None]), 1)
    return new, total


@triton.jit
def partial_kernel(
    x,  # (n, H)
    weight,  # (V, H)
    bias,  # (V,) or unused
    target,  # (n,) int64
    tops,  # (splits, n) float32
    totals,  # (splits, n) float32
    picks,  # (splits, n) float32
    n,
    vocab,
    width,
    stride_x,
    stride_w,
    inner,
    outer,
    split_tiles,  # vocabulary tiles of one split
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_H divides H
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    live = row < n
    wanted = tl.load(target + row, mask=live, other=0).to(tl.int32)
    h = tl.arange(0, BLOCK_H)
    v = tl.arange(0, BLOCK_V)
    x_rows = x + row.to(tl.int64)[:, None] * stride_x + h[None, :]
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    pick = tl.zeros((BLOCK_N,), tl.float32)
    first = split * split_tiles * BLOCK_V
    last = tl.minimum(first + split_tiles * BLOCK_V, vocab)
    for start in range(first, last, BLOCK_V):
        col = start + v
        # 64 bits for the tile's corner only: V · H passes 2³¹
        w_rows = weight + tl.cast(start, tl.int64) * stride_w + v[:, None] * stride_w + h[None, :]
        inside = col < vocab
        acc = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for k in range(0, width, BLOCK_H):
            if EVEN:
                a = tl.load(x_rows + k, mask=live[:, None], other=0.0)
                b = tl.load(w_rows + k, mask=inside[:, None], other=0.0)
            else:
                here = h < width - k
                a = tl.load(x_rows + k, mask=live[:, None] & here[None, :], other=0.0)
                b = tl.load(w_rows + k, mask=inside[:, None] & here[None, :], other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        add = tl.zeros((BLOCK_V,), tl.float32)
        if HAS_BIAS:
            add = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
        z = final_logits(acc, add[None, :], inner, outer, SOFTCAP)
        z = tl.where(inside[None, :], z, float("-inf"))
        pick += tl.sum(tl.where(col[None, :] == wanted[:, None], z, 0.0), 1)
        top, total = fold(top, total, z)
    at = split * n + row
    tl.store(tops + at, top, mask=live)
    tl.store(totals + at, total, mask=live)
    tl.store(picks + at, pick, mask=live)


@triton.jit
def combine_kernel(
    tops,  # (splits, n) float32
    totals,  # (splits, n) float32
    picks,  # (splits, n) float32
    logp,  # (n,) float32
    lse,  # (n,) float32
    n,
    splits,
    SPLITS: tl.constexpr,  # power of two ≥ splits
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.arange(0, SPLITS)
    live = (row < n)[:, None] & (split < splits)[None, :]
    at = split[None, :] * n + row[:, None]
    top = tl.load(tops + at, mask=live, other=float("-inf"))
    total = tl.load(totals + at, mask=live, other=0.0)
    pick = tl.sum(tl.load(picks + at, mask=live, other=0.0), 1)
    best = tl.max(top, 1)
    safe = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(total * tl.exp(top - safe[:, None]), 1)
    result = safe + tl.log(tl.where(row < n, total, 1.0))
    tl.store(logp + row, pick - result, mask=row < n)
    tl.store(lse + row, result, mask=row < n)
