"""Triton: a chunk's logits to log-probs, and to gradients in the memory where they lie.

Either cuBLAS leaves float32 logits, which `reduce_kernel` and `gradient_kernel` sweep; or
`soften_kernel` is the product itself and leaves exp(logit − shift), which needs no sweep: what
remains between that and the gradient is one factor per row and one entry at the target.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl

from comal_kernels.engines.triton.tile import (
    cap_slope,
    final_logits,
    finished,
    fold,
    halves,
    place,
    product,
    raw_logits,
)


@triton.jit(do_not_specialize=["n"])
def soften_kernel(
    x,  # (n, H), or its descriptor
    weight,  # (V, H), or its descriptor
    bias,  # (V,) or unused
    shift,  # (n,) float32: what a row's logits are measured from
    due,  # (n,) int32, or unused: blocks of rows with none due are left alone
    any_due,  # (1,) int32: where that is 0, all of them
    soft,  # (n, V) out, or its descriptor: exp(z − shift), times 1 − tanh² where there is a cap
    totals,  # (tiles, n) float32 out: Σ exp(z − shift)
    n,
    vocab,
    width,
    stride_x,
    stride_w,
    stride,  # of soft
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    FLATTEN: tl.constexpr,  # the next tile's loads go on while this one's logits are softened
    GROUP: tl.constexpr,  # blocks of rows whose tiles run together
    EVEN_V: tl.constexpr,  # BLOCK_V divides V
    STORE: tl.constexpr,  # or only the totals are asked for
    SOME: tl.constexpr,  # only blocks with a row that is due
):
    if SOME and tl.load(any_due) == 0:
        return
    blocks = tl.cdiv(n, BLOCK_N)
    count = blocks * tl.cdiv(vocab, BLOCK_V)
    for at in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=FLATTEN):
        first_row, tile = place(at, blocks, tl.cdiv(vocab, BLOCK_V), GROUP, BLOCK_N)
        first = tile * BLOCK_V
        row = first_row + tl.arange(0, BLOCK_N)
        live = row < n
        wanted = True
        if SOME:
            wanted = tl.max(tl.load(due + row, mask=live, other=0), 0) > 0
        if wanted:
            acc = product(
                x, weight, first_row, first, n, vocab, width, stride_x, stride_w,
                EVEN, TMA, PRECISION, BLOCK_N, BLOCK_V, BLOCK_H,
            )  # fmt: skip
            base = tl.load(shift + row, mask=live, other=0.0)
            total = tl.zeros((BLOCK_N,), tl.float32)
            parts = halves(acc, BLOCK_N, BLOCK_V)
            for i in tl.static_range(2):
                col = first + i * (BLOCK_V // 2)
                z = finished(
                    parts[i], col, bias, vocab, inner, outer,
                    HAS_BIAS, SOFTCAP, EVEN_V, BLOCK_V // 2,
                )  # fmt: skip
                e = tl.exp(z - base[:, None])
                total += tl.sum(e, 1)
                if STORE:
                    if SOFTCAP:
                        t = z / outer
                        e = e * (1.0 - tl.minimum(t * t, 1.0))  # beyond V t is −inf
                    if TMA:
                        soft.store([first_row, col], e.to(soft.dtype))
                    else:
                        words = col + tl.arange(0, BLOCK_V // 2)
                        away = tl.arange(0, BLOCK_N)[:, None] * stride + words[None, :]  # 32 bits
                        corner = soft + tl.cast(first_row, tl.int64) * stride
                        inside = live[:, None] & (words < vocab)[None, :]
                        tl.store(corner + away, e.to(soft.dtype.element_ty), mask=inside)
            tl.store(totals + tl.cast(tile, tl.int64) * n + row, total, mask=live)


@triton.jit(do_not_specialize_on_alignment=["target", "logp", "tops", "rests"])
def reduce_kernel(
    logits,  # (n, V) float32: raw products
    bias,  # (V,) or unused
    target,  # (n,) int64
    logp,  # (n,) float32
    tops,  # (n,) float32: the largest logit
    rests,  # (n,) float32: log-sum-exp less that; apart, they are as precise as their difference
    vocab,
    stride,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    v = tl.arange(0, BLOCK_V)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for start in range(0, vocab, BLOCK_V):
        col = start + v
        inside = col < vocab
        raw, add = raw_logits(line, bias, col, vocab, HAS_BIAS)
        z = final_logits(raw, add, inner, outer, SOFTCAP)
        top, total = fold(top, total, tl.where(inside, z, float("-inf"))[None, :])
    one = tl.load(target + row + tl.arange(0, 1))
    own, shift = raw_logits(line, bias, one, vocab, HAS_BIAS)
    pick = final_logits(own, shift, inner, outer, SOFTCAP)
    at = row + tl.arange(0, 1)
    tl.store(logp + at, (pick - top) - tl.log(total))
    tl.store(tops + at, top)
    tl.store(rests + at, tl.log(total))


@triton.jit(do_not_specialize_on_alignment=["target", "tops", "rests", "coef"])
def gradient_kernel(
    logits,  # (n, V) float32: raw products
    grads,  # (n, V) the same memory in the products' dtype, at the start of each row
    bias,  # (V,) or unused
    target,  # (n,) int64
    tops,  # (n,) float32, of reduce_kernel
    rests,  # (n,) float32
    coef,  # (n,) float32: d loss / d logp
    vocab,
    stride,  # elements of logits from row to row
    grad_stride,  # elements of grads from row to row
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
    top = tl.load(tops + row)
    rest = tl.load(rests + row)
    wanted = tl.load(target + row).to(tl.int32)
    factor = tl.load(coef + row) * inner * outer
    for start in range(0, vocab, BLOCK_V):
        col = start + v
        inside = col < vocab
        raw, add = raw_logits(line, bias, col, vocab, HAS_BIAS)
        z = final_logits(raw, add, inner, outer, SOFTCAP)
        g = tl.where(col == wanted, 1.0, 0.0) - tl.exp((z - top) - rest)
        if SOFTCAP:
            g = g * cap_slope(raw, add, inner)
        g = g * factor
        # halves are written below the place they were read from: wait till this block is read
        tl.debug_barrier()
        tl.store(out + col, g.to(grads.dtype.element_ty), mask=inside)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["factor_stride"], do_not_specialize_on_alignment=["factor"])
def scale_kernel(
    x,  # (rows, width)
    factor,  # (rows,), or () with a stride of 0
    out,  # (rows, width), in a dtype of its own
    width,
    factor_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    times = tl.load(factor + row * factor_stride).to(tl.float32)
    value = tl.load(x + row * width + col, mask=col < width, other=0.0).to(tl.float32) * times
    tl.store(out + row * width + col, value.to(out.dtype.element_ty), mask=col < width)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["factor"])
def scale_in_place_kernel(
    x,  # (count,)
    factor,  # ()
    count,
    BLOCK: tl.constexpr,
):
    """x ← x · factor, multiplied in float32.

    Only the device knows the factor, and nearly always it is 1: then every program ends after one
    load, and the 1 GB of an 8B model's dW is neither read nor written (about 0.5 ms on an H200).
    """
    times = tl.load(factor).to(tl.float32)
    if times != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        for _ in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
            value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32) * times
            tl.store(x + at, value.to(x.dtype.element_ty), mask=at < count)
            at += tl.num_programs(0) * BLOCK
