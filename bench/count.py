"""FLOP and bytes of a prox step, counted part by part from the shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.models import Shape


@dataclass(frozen=True)
class Part:
    """What one part of a step costs: FLOP of products, bytes moved to and from device memory."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Load:
    """One optimiser step: what goes through the model."""

    lengths: Sequence[int]  # tokens of each packed sequence, prompt included
    responses: int  # tokens that the head sees
    micro_batches: int
    itemsize: int  # bytes of a weight, gradient, moment and activation
    checkpointing: bool

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


# Tensors that eager transformers reads or writes, a token and layer, in one forward pass
NORM_MOVES = 7  # H wide: square, mean, scale, weight; twice a layer
RESIDUAL_MOVES = 3  # H wide; twice a layer
ROTARY_MOVES = 9  # as wide as queries and keys: two products, half turned, a sum
SWIGLU_MOVES = 5  # I wide: silu, product
BACKWARD = 2.0  # the backward pass moves about twice as much


def parts(shape: Shape, load: Load) -> list[Part]:
    """Blocks, attention, elementwise, embedding, head, optimizer; forward and backward."""
    tokens, item = load.tokens, load.itemsize
    passes = 4 if load.checkpointing else 3  # forward, again, dX, dW
    weights = shape.block_parameters * item
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # causal: half of QKᵀ and half of PV; backward has five such products for two
    scores = sum(n * n for n in load.lengths) * queries * shape.layers
    forward_again = 2 if load.checkpointing else 1
    attention = scores * (2 * forward_again + 5)
    attended = tokens * (2 * queries + 2 * keys) * item * shape.layers * (forward_again + 2)
    moves = 2 * (NORM_MOVES + RESIDUAL_MOVES) * shape.hidden
    moves += ROTARY_MOVES * (queries + keys) + SWIGLU_MOVES * shape.intermediate
    moved = tokens * moves * item * shape.layers * (forward_again + BACKWARD)
    head = shape.vocab * shape.hidden
    return [
        Part(
            "blocks: products",
            2 * passes * shape.block_parameters * tokens,
            passes * weights * load.micro_batches + passes * tokens * item * shape.layers
            * (4 * shape.hidden + 2 * queries + 2 * keys + 3 * shape.intermediate),
        ),
        Part("blocks: attention", attention, attended),
        Part("blocks: elementwise", 0.0, moved),
        Part("embedding", 0.0, 3 * tokens * shape.hidden * item + 2 * head * item),
        Part(
            "head and prox loss",
            6 * load.responses * head,
            # logits once written and three times read, the weight twice, dW in float32
            4 * load.responses * shape.vocab * item + 2 * head * item + 2 * head * 4,
        ),
        # AdamW reads and writes weight and moments, reads the gradient; clipping reads it once more
        Part("optimizer", 0.0, 8 * shape.parameters * item),
    ]  # fmt: skip


def memory(shape: Shape, load: Load, workspace: int) -> dict[str, float]:
    """Bytes at the peak, by what holds them."""
    tokens = load.tokens / load.micro_batches  # alive at a time
    item = load.itemsize
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    saved = 2 * 4 * shape.hidden + 3 * queries + 5 * keys + 4 * shape.intermediate
    layers = 1 if load.checkpointing else shape.layers
    kept = shape.layers * shape.hidden if load.checkpointing else 0
    return {
        "weights": shape.parameters * item,
        "gradients": shape.parameters * item,
        "AdamW's moments": 2 * shape.parameters * item,
        "activations": tokens * item * (saved * layers + kept),
        "head's logits": workspace,
        "head's dW in float32": shape.vocab * shape.hidden * 4,
    }
