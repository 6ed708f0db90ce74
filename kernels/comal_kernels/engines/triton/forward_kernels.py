"""Triton: a row's logit at its target, and log-sum-exps that no logit overflows.

Rows × slices of the vocabulary, then a small second kernel over the slices: no atomics, so the
result is bit-identical from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl

from comal_kernels.engines.triton.tile import final_logits, finished, fold, halves, product


@triton.jit(do_not_specialize_on_alignment=["target", "picks"])
def pick_kernel(
    x,  # (n, H)
    weight,  # (V, H)
    bias,  # (V,) or unused
    target,  # (n,) int64
    picks,  # (n,) float32 out: logits of the targets
    width,
    stride_x,
    stride_w,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    word = tl.load(target + row)
    h = tl.arange(0, BLOCK_H)
    sums = tl.zeros((BLOCK_H,), tl.float32)
    for k in range(0, width, BLOCK_H):
        here = h < width - k
        a = tl.load(x + row * stride_x + k + h, mask=here, other=0.0).to(tl.float32)
        b = tl.load(weight + word * stride_w + k + h, mask=here, other=0.0).to(tl.float32)
        sums += a * b
    one = tl.arange(0, 1)
    add = tl.zeros((1,), tl.float32)
    if HAS_BIAS:
        add = tl.load(bias + word + one).to(tl.float32)
    z = tl.zeros((1,), tl.float32) + tl.sum(sums, 0)
    tl.store(picks + row + one, final_logits(z, add, inner, outer, SOFTCAP))


@triton.jit(
    do_not_specialize=["n", "split_tiles"],
    do_not_specialize_on_alignment=["due", "tops", "totals"],
)
def partial_kernel(
    x,  # (n, H), or its descriptor
    weight,  # (V, H), or its descriptor
    bias,  # (V,) or unused
    due,  # (n,) int32: blocks of rows with none due are left alone
    any_due,  # (1,) int32: where that is 0, all of them
    tops,  # (splits, n) float32 out: largest logits
    totals,  # (splits, n) float32 out: Σ exp(z − top)
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
    if tl.load(any_due) == 0:
        return
    first_row = tl.program_id(0) * BLOCK_N
    split = tl.program_id(1)
    row = first_row + tl.arange(0, BLOCK_N)
    live = row < n
    if tl.max(tl.load(due + row, mask=live, other=0), 0) == 0:
        return
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    begin = split * split_tiles * BLOCK_V
    end = tl.minimum(begin + split_tiles * BLOCK_V, vocab)
    for start in range(begin, end, BLOCK_V):
        acc = product(
            x, weight, first_row, start, n, vocab, width, stride_x, stride_w,
            EVEN, TMA, PRECISION, BLOCK_N, BLOCK_V, BLOCK_H,
        )  # fmt: skip
        parts = halves(acc, BLOCK_N, BLOCK_V)
        for i in tl.static_range(2):
            z = finished(
                parts[i], start + i * (BLOCK_V // 2), bias, vocab, inner, outer,
                HAS_BIAS, SOFTCAP, False, BLOCK_V // 2,
            )  # fmt: skip
            top, total = fold(top, total, z)
    at = tl.cast(split, tl.int64) * n + row
    tl.store(tops + at, top, mask=live)
    tl.store(totals + at, total, mask=live)


@triton.jit(
    do_not_specialize=["n", "splits"], do_not_specialize_on_alignment=["tops", "totals", "lse"]
)
def combine_kernel(
    any_due,  # (1,) int32: 0 where there is nothing to combine
    tops,  # (splits, n) float32
    totals,  # (splits, n) float32
    lse,  # (n,) float32 out
    n,
    splits,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    if tl.load(any_due) == 0:
        return
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        live = (row < n)[:, None] & (split < splits)[None, :]
        at = tl.cast(split, tl.int64)[None, :] * n + row[:, None]
        top = tl.load(tops + at, mask=live, other=float("-inf"))
        part = tl.load(totals + at, mask=live, other=0.0)
        new = tl.maximum(best, tl.max(top, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(best - safe) + tl.sum(part * tl.exp(top - safe[:, None]), 1)
        best = new
    tl.store(lse + row, best + tl.log(tl.where(row < n, total, 1.0)), mask=row < n)
