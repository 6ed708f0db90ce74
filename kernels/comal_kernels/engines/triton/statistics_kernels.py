"""Triton: all statistics of a row of logits in one sweep, and the gradient of any sum of them.

The logits are cuBLAS's float32 products, as for `reduce_kernel` and `gradient_kernel`. Sums over
the vocabulary go on in float64, a block's at a time: what differs by little is left of them.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl

from comal_kernels.engines.triton.tile import cap_slope, final_logits, raw_logits


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["target", "likeliest"])
def statistics_kernel(
    logits,  # (n, V) float32: raw products; with KEEP final logits afterwards
    bias,  # (V,) or unused
    target,  # (n,) int64
    numbers,  # (5, n) float64 out: z[target], max z, Σ exp(z − max), Σ exp(z − max) (z − max), Σ z
    likeliest,  # (n,) int8 out: the target is the likeliest word, of equals the first
    n,
    vocab,
    stride,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    v = tl.arange(0, BLOCK_V)
    one = tl.arange(0, 1)
    wanted = tl.load(target + row + one)
    own, shift = raw_logits(line, bias, wanted, vocab, HAS_BIAS)
    pick = final_logits(own, shift, inner, outer, SOFTCAP)
    if KEEP:
        tl.debug_barrier()  # the target's product is read before its logit is in its place
    top = tl.full((1,), float("-inf"), tl.float32)
    best = tl.zeros((1,), tl.int32)
    total = tl.zeros((1,), tl.float64)  # Σ exp(z − top)
    weighted = tl.zeros((1,), tl.float64)  # Σ exp(z − top) (z − top)
    sums = tl.zeros((1,), tl.float64)
    for start in range(0, vocab, BLOCK_V):
        col = start + v
        inside = col < vocab
        raw, add = raw_logits(line, bias, col, vocab, HAS_BIAS)
        z = final_logits(raw, add, inner, outer, SOFTCAP)
        if KEEP:
            tl.store(line + col, z, mask=inside)
        sums += tl.sum(tl.where(inside, z, 0.0)[None, :], 1).to(tl.float64)
        z = tl.where(inside, z, float("-inf"))
        peak = tl.max(z[None, :], 1)
        first = tl.min(tl.where(z == peak, col, vocab)[None, :], 1)
        best = tl.where(peak > top, first, best)
        new = tl.maximum(top, peak)
        safe = tl.where(new == float("-inf"), 0.0, new)
        # −∞ − −∞ is no number, and 0 · −∞ neither
        fall = tl.maximum(tl.where(top == float("-inf"), -1e4, top - safe), -1e4)
        gap = z - safe
        e = tl.exp(gap)
        less = tl.exp(fall).to(tl.float64)
        weighted = less * (weighted + fall * total)
        weighted += tl.sum((e * tl.maximum(gap, -1e4))[None, :], 1).to(tl.float64)
        total = less * total + tl.sum(e[None, :], 1).to(tl.float64)
        top = new
    at = numbers + row + one
    tl.store(at, pick.to(tl.float64))
    tl.store(at + n, top.to(tl.float64))
    tl.store(at + 2 * n, total)
    tl.store(at + 3 * n, weighted)
    tl.store(at + 4 * n, sums)
    tl.store(likeliest + row + one, (best == wanted).to(tl.int8))


@triton.jit(
    do_not_specialize=["k"],
    do_not_specialize_on_alignment=[
        "target",
        "lses",
        "of_p",
        "of_entropy",
        "of_every",
        "of_target",
    ],
)
def slopes_kernel(
    logits,  # (n, V) float32: raw products
    grads,  # (n, V) the same memory in the products' dtype, at the start of each row
    bias,  # (V,) or unused
    target,  # (n,) int64
    lses,  # (n,) float32
    of_p,  # (n,) float32: the gradient is p (of_p + of_entropy log p) + of_every, and
    of_entropy,  # (n,) float32
    of_every,  # (n,) float32
    of_target,  # (n,) float32: this at the target
    ids,  # (n, k) int64
    of_ids,  # (n, k) float32: these at other words
    vocab,
    stride,  # elements of logits from row to row
    grad_stride,  # elements of grads from row to row
    k,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    out = grads + row * grad_stride
    v = tl.arange(0, BLOCK_V)
    lse = tl.load(lses + row)
    wanted = tl.load(target + row).to(tl.int32)
    by_p, by_entropy = tl.load(of_p + row), tl.load(of_entropy + row)
    by_every, by_target = tl.load(of_every + row), tl.load(of_target + row)
    for start in range(0, vocab, BLOCK_V):
        col = start + v
        inside = col < vocab
        raw, add = raw_logits(line, bias, col, vocab, HAS_BIAS)
        z = final_logits(raw, add, inner, outer, SOFTCAP)
        gap = z - lse
        g = tl.exp(gap) * (by_p + by_entropy * tl.maximum(gap, -1e4)) + by_every
        g += tl.where(col == wanted, by_target, 0.0)
        for i in range(0, k):
            word = tl.load(ids + row * k + i).to(tl.int32)
            g += tl.where(col == word, tl.load(of_ids + row * k + i), 0.0)
        if SOFTCAP:
            g = g * cap_slope(raw, add, inner)
        g = g * (inner * outer)
        # halves are written below the place they were read from: wait till this block is read
        tl.debug_barrier()
        tl.store(out + col, g.to(grads.dtype.element_ty), mask=inside)
        tl.debug_barrier()
