"""FLOP and bytes of a prox step, counted part by part from the shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comal_fast.plan.elementwise import LIGER, Layers, eager
from comal_fast.plan.shapes import Shape

EAGER_ATTENTION = 0.5  # of the products' rate, on a CPU
FLASH_2, FLASH_3 = 0.2, 0.4  # on a Hopper GPU, for causal sequences of some hundred tokens; assumed
CLIPPED_BY_A_SWEEP = 3.0  # sweeps of the gradients: read for their norm, read and written to scale


@dataclass(frozen=True)
class Part:
    """What one part of a step costs: FLOP of products, bytes moved to and from device memory."""

    name: str
    flops: float
    bytes: float
    share: float = 1.0  # of the products' rate that its products reach


@dataclass(frozen=True)
class Load:
    """One optimiser step: what goes through the model."""

    lengths: Sequence[int]  # tokens of each packed sequence, prompt included
    responses: int  # tokens that the head sees
    micro_batches: int
    itemsize: int  # bytes of a weight, gradient and activation
    recomputed: float = 0.0  # share of the layers that run forward twice
    frozen: bool = False  # no gradients of the weights themselves
    state: float | None = None  # bytes of the moments of a weight; None: two of `itemsize`
    trained: int | None = None  # weights that are; None: all
    layers: Layers | None = None  # None: transformers' own
    attention: float = EAGER_ATTENTION  # share of the products' rate
    sweeps: float = 1.0  # of the gradients beside the update's own: their norm
    update: float | None = None  # bytes a weight of the update; None: AdamW in one kernel

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def parts(shape: Shape, load: Load) -> list[Part]:
    """The parts of a step, forward and backward: blocks, attention, …, head, optimizer."""
    tokens, item = load.tokens, load.itemsize
    forward = 1 + load.recomputed
    passes = forward + (1 if load.frozen else 2)  # dX, dW
    weights = shape.block_parameters * item
    queries, keys = shape.queries, shape.keys
    # causal: half of QKᵀ and half of PV; backward has five such products for two
    scores = sum(n * n for n in load.lengths) * queries * shape.layers
    attention = scores * (2 * forward + 5)
    attended = tokens * (2 * queries + 2 * keys) * item * shape.layers * (forward + 2)
    layers = load.layers or eager(item)
    moved = tokens * shape.layers * layers.moved(shape, forward)
    head = shape.head_parameters
    trained = shape.parameters if load.trained is None else load.trained
    state = 2 * item if load.state is None else load.state
    # AdamW reads and writes weight and moments, and reads the gradient
    update = 3 * item + 2 * state if load.update is None else load.update
    return [
        Part(
            "blocks: products",
            2 * passes * shape.block_parameters * tokens,
            passes * weights * load.micro_batches + passes * tokens * item * shape.layers
            * (4 * shape.hidden + 2 * queries + 2 * keys + 3 * shape.intermediate),
        ),
        Part("blocks: attention", attention, attended, load.attention),
        Part("blocks: elementwise", 0.0, moved),
        Part("embedding", 0.0, 3 * tokens * shape.hidden * item + 2 * head * item),
        Part(
            "head and prox loss",
            (4 if load.frozen else 6) * load.responses * head,
            # logits once written and three times read, the weight twice, dW in float32
            4 * load.responses * shape.vocab * item + 2 * head * item
            + (0 if load.frozen else 2 * head * 4),
        ),
        Part("optimizer", 0.0, trained * (update + load.sweeps * item)),
    ]  # fmt: skip


def forward_parts(
    shape: Shape, lengths: Sequence[int], responses: int, itemsize: int
) -> list[Part]:
    """The parts of a forward pass on a GPU over packed sequences.

    responses: tokens with logits.
    """
    tokens, block, head = sum(lengths), shape.block_parameters, shape.head_parameters
    attention = 2 * sum(n * n for n in lengths) * shape.queries * shape.layers
    moved = (
        tokens
        * shape.layers
        * (LIGER.moved(shape, 1, backward=False) + 2 * (shape.queries + shape.keys) * itemsize)
    )
    return [
        Part("blocks: products", 2.0 * block * tokens, 0.0),
        Part("blocks: attention", attention, 0.0),
        Part("blocks: elementwise", 0.0, moved),
        Part("head", 2.0 * head * responses, 2.0 * responses * shape.vocab * itemsize),
    ]
