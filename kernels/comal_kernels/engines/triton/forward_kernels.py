"""Triton: head product, online log-sum-exp and target gather in one kernel; logits stay on chip.

Rows × slices of the vocabulary, then a small second kernel over the slices: no atomics, so the
result is bit-identical from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl

from comal_kernels.engines.triton.tile import finished, fold, halves, product


@triton.jit
def partial_kernel(
    x,  # (n, H), or its descriptor
    weight,  # (V, H), or its descriptor
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
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    first_row = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    row = first_row + tl.arange(0, BLOCK_N)
    live = row < n
    wanted = tl.load(target + row, mask=live, other=0).to(tl.int32)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    pick = tl.zeros((BLOCK_N,), tl.float32)
    begin = split * split_tiles * BLOCK_V
    end = tl.minimum(begin + split_tiles * BLOCK_V, vocab)
    for start in range(begin, end, BLOCK_V):
        acc = product(
            x, weight, first_row, start, n, vocab, width, stride_x, stride_w,
            EVEN, TMA, PRECISION, BLOCK_N, BLOCK_V, BLOCK_H,
        )  # fmt: skip
        parts = halves(acc, BLOCK_N, BLOCK_V)
        for i in tl.static_range(2):
            first = start + i * (BLOCK_V // 2)
            z = finished(
                parts[i], first, bias, vocab, inner, outer, HAS_BIAS, SOFTCAP, BLOCK_V // 2
            )
            col = first + tl.arange(0, BLOCK_V // 2)
            pick += tl.sum(tl.where(col[None, :] == wanted[:, None], z, 0.0), 1)
            top, total = fold(top, total, z)
    at = tl.cast(split, tl.int64) * n + row
    tl.store(tops + at, top, mask=live)
    tl.store(totals + at, total, mask=live)
    tl.store(picks + at, pick, mask=live)


@triton.jit
def combine_kernel(
    tops,  # (splits, n) float32
    totals,  # (splits, n) float32
    picks,  # (splits, n) float32: the target's logit in one of them, 0 in the others
    logp,  # (n,) float32
    lse,  # (n,) float32
    n,
    splits,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    pick = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        live = (row < n)[:, None] & (split < splits)[None, :]
        at = tl.cast(split, tl.int64)[None, :] * n + row[:, None]
        top = tl.load(tops + at, mask=live, other=float("-inf"))
        part = tl.load(totals + at, mask=live, other=0.0)
        pick += tl.sum(tl.load(picks + at, mask=live, other=0.0), 1)
        new = tl.maximum(best, tl.max(top, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(best - safe) + tl.sum(part * tl.exp(top - safe[:, None]), 1)
        best = new
    rest = tl.log(tl.where(row < n, total, 1.0))
    # the logit less the largest first: both are large where the difference is small
    tl.store(logp + row, (pick - best) - rest, mask=row < n)
    tl.store(lse + row, best + rest, mask=row < n)
