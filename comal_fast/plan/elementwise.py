"""Bytes that a layer's elementwise operators move, by who computes them.

Counted a token, layer and channel, operator by operator as autograd runs them. In 16 bits
transformers' norm works in float32, so that each of its tensors moves twice the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from comal_fast.plan.shapes import Shape


@dataclass(frozen=True)
class Moved:
    """Bytes that an operator reads and writes, a channel."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Layers:
    """The traffic of a layer's elementwise operators; `norm` and `residual` occur twice a layer.

    Attributes:
        norm: RMSNorm, as wide as the layer.
        residual: The sum of a layer's input and what it adds, as wide.
        rotary: The positions' rotation of queries and keys, as wide as both.
        gate: silu(a) · b of the MLP, as wide as its inner states.
    """

    norm: Moved
    residual: Moved
    rotary: Moved
    gate: Moved

    def moved(self, shape: Shape, forward_passes: float, backward: bool = True) -> float:
        """Return the bytes a token and layer of so many forward passes and one backward pass."""
        widths = (
            (self.norm, 2 * shape.hidden),
            (self.residual, 2 * shape.hidden),
            (self.rotary, shape.queries + shape.keys),
            (self.gate, shape.intermediate),
        )
        return sum(
            width * (forward_passes * operator.forward + backward * operator.backward)
            for operator, width in widths
        )


# float32: square, mean, scale, weight; silu, product; two products, half turned, a sum
EAGER32 = Layers(Moved(28, 56), Moved(12, 24), Moved(36, 72), Moved(20, 40))
# the same in 16 bits: the norm casts to float32 and back, and so do its gradients
EAGER16 = Layers(Moved(36, 78), Moved(6, 6), Moved(20, 24), Moved(10, 18))
# Liger's kernels: each tensor in once and out once; the gate's backward pass computes silu again
LIGER = Layers(Moved(4, 6), Moved(6, 6), Moved(4, 4), Moved(6, 10))
# one of a layer's two sums and the norm after it in one kernel, means over the two
FUSED = Layers(Moved(2, 3), Moved(7, 7), Moved(4, 4), Moved(6, 10))


def eager(itemsize: int) -> Layers:
    """Return what transformers' own layers move in numbers of so many bytes."""
    return EAGER32 if itemsize == 4 else EAGER16
