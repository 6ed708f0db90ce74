"""Triton: a chunk's logits to log-probs, and to gradients in the memory where they lie."""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl

from comal_kernels.ops.linear_logprob.kernels import final_logits, fold


@triton.jit
def reduce_kernel(
    logits,  # (n, V) float32: raw products
    bias,  # (V,) or unused
    target,  # (n,) int64
    logp,  # (n,) float32
    lse,  # (n,) float32
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
        z = tl.load(line + col, mask=inside, other=0.0)
        add = tl.zeros((BLOCK_V,), tl.float32)
        if HAS_BIAS:
            add = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
        z = final_logits(z, add, inner, outer, SOFTCAP)
        top, total = fold(top, total, tl.where(inside, z, float("-inf"))[None, :])
    one = tl.load(target + row + tl.arange(0, 1))
    add = tl.zeros((1,), tl.float32)
    if HAS_BIAS:
        add = tl.load(bias + one).to(tl.float32)
    result = top + tl.log(total)
    pick = final_logits(tl.load(line + one), add, inner, outer, SOFTCAP)
    at = row + tl.arange(0, 1)
    tl.store(logp + at, pick - result)
    tl.store(lse + at, result)


@triton.jit
def gradient_kernel(
    logits,  # (n, V) float32: raw products
    grads,  # (n, V) the same memory in the products' dtype, at the start of each row
    bias,  # (V,) or unused
    target,  # (n,) int64
    lse,  # (n,) float32
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
    total = tl.load(lse + row)
    wanted = tl.load(target + row).to(tl.int32)
    factor = tl.load(coef + row) * inner * outer
    for start in range(0, vocab, BLOCK_V):
        col = start + v
        inside = col < vocab
        z = tl.load(line + col, mask=inside, other=0.0)
        add = tl.zeros((BLOCK_V,), tl.float32)
        if HAS_BIAS:
            add = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
        z = final_logits(z, add, inner, outer, SOFTCAP)
        g = tl.where(col == wanted, 1.0, 0.0) - tl.exp(z - total)
        if SOFTCAP:
            t = z / outer
            g = g * (1.0 - t * t)
        g = g * factor
        # halves are written below the place they were read from: wait till this block is read
        tl.debug_barrier()
        tl.store(out + col, g.to(grads.dtype.element_ty), mask=inside)
        tl.debug_barrier()
