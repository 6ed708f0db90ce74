"""bfloat16 in Triton's interpreter, which keeps it as uint16 and multiplies the integers.

`install()`: arithmetic and products in float32, casts to the nearest, ties to even, as a GPU's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers whose upper halves these are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(x: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of x rounded to nearest, ties to even; NaN stays NaN."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def install() -> None:
    """Teach the interpreter's builder; once is enough."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "bfloat16", False):
        return
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return dot(self, a, b, d, *rest)
        products = np.matmul(*(widened(x.data) for x in (a, b)))
        return interpreter.TensorHandle(products + d.data, d.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        known, wanted = source.dtype.scalar, target.scalar
        if known == wanted or tl.bfloat16 not in (known, wanted):
            return cast(self, source, target)
        data = widened(source.data) if known == tl.bfloat16 else source.data
        if wanted == tl.bfloat16:
            return interpreter.TensorHandle(narrowed(data), wanted)
        return interpreter.TensorHandle(data.astype(interpreter._get_np_dtype(target)), wanted)

    binary, unary = builder.binary_op, builder.unary_op

    def wide(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(widened(x.data), tl.float32)

    def narrow(x: Any) -> Any:
        if not np.issubdtype(x.data.dtype, np.floating):
            return x  # of a comparison
        return interpreter.TensorHandle(narrowed(x.data), tl.bfloat16)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if tl.bfloat16 not in (left.dtype.scalar, right.dtype.scalar):
            return binary(self, left, right, op)
        return narrow(binary(self, wide(left), wide(right), op))

    def unary_op(self: Any, x: Any, op: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return unary(self, x, op)
        return narrow(unary(self, wide(x), op))

    builder.create_dot, builder.cast_impl, builder.bfloat16 = create_dot, cast_impl, True
    builder.binary_op, builder.unary_op = binary_op, unary_op
