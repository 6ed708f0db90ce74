"""Triton: what the kernels over logits share. A tile of the head's product, and what follows it."""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

import triton
import triton.language as tl


@triton.jit
def product(
    x,  # (n, H) pointer, or tensor descriptor where TMA
    weight,  # (V, H) likewise
    row,  # first row of the tile
    col,  # its first word
    n,
    vocab,
    width,
    stride_x,
    stride_w,
    EVEN: tl.constexpr,  # BLOCK_H divides H
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """x Wᵀ at (row, col): (BLOCK_N, BLOCK_V) float32, 0 beyond n and V."""
    acc = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    if TMA:  # what lies beyond the edges is read as 0
        for k in range(0, width, BLOCK_H):
            a = x.load([row, k])
            b = weight.load([col, k])
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    else:
        i, j, h = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_H)
        live, inside = (row + i < n)[:, None], (col + j < vocab)[:, None]
        # 64 bits for the tile's corner only: V · H passes 2³¹
        x_rows = x + tl.cast(row, tl.int64) * stride_x + i[:, None] * stride_x + h[None, :]
        w_rows = weight + tl.cast(col, tl.int64) * stride_w + j[:, None] * stride_w + h[None, :]
        for k in range(0, width, BLOCK_H):
            if EVEN:
                a = tl.load(x_rows + k, mask=live, other=0.0)
                b = tl.load(w_rows + k, mask=inside, other=0.0)
            else:
                here = (h < width - k)[None, :]
                a = tl.load(x_rows + k, mask=live & here, other=0.0)
                b = tl.load(w_rows + k, mask=inside & here, other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def place(at, blocks, tiles, GROUP: tl.constexpr, BLOCK_N: tl.constexpr):
    """First row and vocabulary tile of the at-th of blocks × tiles.

    Neighbours share rows and words: a group of blocks goes through all words, one tile after
    another, so that both factors come from the L2 cache.
    """
    group = at // (GROUP * tiles)
    within = at % (GROUP * tiles)
    size = tl.minimum(blocks - group * GROUP, GROUP)
    return (group * GROUP + within % size) * BLOCK_N, within // size


@triton.jit
def halves(tile, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr):
    """Left and right half, (BLOCK_N, BLOCK_V / 2) each: what follows needs half the registers."""
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_N, 2, BLOCK_V // 2)), (0, 2, 1)))


@triton.jit
def final_logits(z, bias, inner, outer, SOFTCAP: tl.constexpr):
    """Raw products z and bias, float32 → logits, capped and scaled in the order of `Head`."""
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
def raw_logits(line, bias, col, vocab, HAS_BIAS: tl.constexpr):
    """Raw products and biases (v,) float32 of a row in memory at words col (v,), 0 beyond V."""
    inside = col < vocab
    z = tl.load(line + col, mask=inside, other=0.0)
    add = tl.zeros_like(z)
    if HAS_BIAS:
        add = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
    return z, add


@triton.jit
def cap_slope(z, bias, inner):
    """1 − tanh² of what `final_logits` caps, without the cancellation of that difference."""
    e = tl.exp(-2.0 * tl.abs((z + bias) * inner))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def fold(top, total, z):
    """Online log-sum-exp over axis 1: (n,) (n,) (n, v) → new top and Σ exp(· − top), (n,) each."""
    new = tl.maximum(top, tl.max(z, 1))
    # a row of nothing but −inf so far would give inf − inf
    safe = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(top - safe) + tl.sum(tl.exp(z - safe[:, None]), 1)
    return new, total


@triton.jit
def finished(
    z,  # (n, v) raw product
    first,  # its first word
    bias,  # (V,) or unused
    vocab,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN_V: tl.constexpr,  # all v words are inside
    WORDS: tl.constexpr,  # v
):
    """Raw products (n, v) → final logits (n, v), −inf beyond V."""
    col = first + tl.arange(0, WORDS)
    inside = col < vocab
    add = tl.zeros((WORDS,), tl.float32)
    if HAS_BIAS:
        add = tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
    z = final_logits(z, add[None, :], inner, outer, SOFTCAP)
    return z if EVEN_V else tl.where(inside[None, :], z, float("-inf"))
