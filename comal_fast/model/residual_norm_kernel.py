"""One kernel for a residual addition and the RMSNorm behind it, and one for their gradients.

With x, r, w the attention's output, the residual and the norm's weight, and rows of H numbers:

    s = x + r,   ρ = 1 / √(mean(s²) + ε),   n = s · ρ,   y = w · n

As transformers' layers have it, s and n are rounded to the dtype of the model, and the mean is
taken in float32. A program holds a whole row in registers: x and r are read once, s and y written
once, where the two operators by themselves read s again. Backwards, with m = w · dy,

    dx = dr = ds + ρ · m − ρ³ · mean(m · s) · s,   dw = Σ over rows of dy · n

so dy, ds and s are read once and dx is written once, rounded once. A program of the second kernel
takes ROWS rows and keeps its part of dw in float32 registers; torch adds the parts up.
"""

# mypy: disable-error-code="no-untyped-def"
# triton reads the arguments' types from each launch

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    x_ptr,  # (T, H) contiguous, as are all below
    r_ptr,  # (T, H)
    w_ptr,  # (H,)
    s_ptr,  # (T, H)
    y_ptr,  # (T, H)
    rho_ptr,  # (T,) float32
    width,  # H
    eps,
    BLOCK: tl.constexpr,  # a power of two, H at least
):
    """Write s, y and ρ of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    r = tl.load(r_ptr + at, mask=inside, other=0.0)
    # The sum is rounded to the model's dtype before anything is computed from it.
    rounded = (x.to(tl.float32) + r.to(tl.float32)).to(s_ptr.dtype.element_ty)
    tl.store(s_ptr + at, rounded, mask=inside)
    s = rounded.to(tl.float32)
    rho = tl.rsqrt(tl.sum(s * s, axis=0) / width + eps)
    tl.store(rho_ptr + row, rho)
    n = (s * rho).to(s_ptr.dtype.element_ty).to(tl.float32)
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (w * n).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def add_norm_backward_kernel(
    dy_ptr,  # (T, H) contiguous, as are all below
    ds_ptr,  # (T, H)
    s_ptr,  # (T, H)
    w_ptr,  # (H,)
    rho_ptr,  # (T,) float32
    dx_ptr,  # (T, H)
    dw_ptr,  # (programs, H) float32
    num_rows,  # T
    width,  # H
    ROWS: tl.constexpr,  # of a program
    HAS_DW: tl.constexpr,  # the weight is trained
    BLOCK: tl.constexpr,
):
    """Write dx of ROWS rows, and their part of dw."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_DW:
        dw = tl.zeros((BLOCK,), dtype=tl.float32)
    first = program * ROWS
    for row in range(first, tl.minimum(first + ROWS, num_rows)):
        at = row * width + columns
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rho = tl.load(rho_ptr + row)
        if HAS_DW:
            dw += dy * (s * rho).to(s_ptr.dtype.element_ty).to(tl.float32)
        m = w * dy
        shared = rho * rho * rho * tl.sum(m * s, axis=0) / width
        ds = tl.load(ds_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dx = ds + rho * m - shared * s
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if HAS_DW:
        tl.store(dw_ptr + program * width + columns, dw, mask=inside)
