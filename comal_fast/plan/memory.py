"""Bytes on the device, by what holds them, at each moment of training that can be the peak.

Counted, not fitted: weights, gradients and moments from the shape; what layers keep and need from
`trace.py`; the head's workspace and dW from `comal_kernels`. Not counted: what libraries and the
CUDA context take once, and fragmentation (`HEADROOM` is left for them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from comal_fast.plan.modes import Mode
from comal_fast.plan.shapes import Shape
from comal_fast.plan.trace import PerToken, per_token
from comal_kernels.engines.workspace import chunk_rows
from comal_kernels.head import compute_dtype

HEADROOM = 0.06  # of the device's memory, that a plan leaves free; assumed
SAMPLING_BYTES = 32  # a logit: float32 copies, their sort, softmax, running sum in float64
# What the ranks of a distributed run share out, by phase; each holds whole whatever is not named.
SHARED: dict[str, tuple[str, ...]] = {
    "train": ("weights", "gradients", "optimizer state"),
    "generate, evaluate": (),
    "logps": (),
}
Parts = dict[str, float]


@dataclass(frozen=True)
class LargestPass:
    """The largest packed pass of a step."""

    tokens: int
    responses: int  # of them, those that the head sees
    alone: bool  # a step is this one pass


@dataclass(frozen=True)
class Peak:
    """Where the most memory is in use, and by what."""

    moment: str
    parts: Parts

    @property
    def bytes(self) -> float:
        return sum(self.parts.values())


def peak(moments: dict[str, Parts]) -> Peak:
    """The moment that needs the most."""
    return max((Peak(name, parts) for name, parts in moments.items()), key=lambda p: p.bytes)


def kept(each: PerToken, mode: Mode, layers: int, tokens: int, cuda: bool = True) -> float:
    """Bytes that the layers keep on the device for the backward pass."""
    recomputed = min(mode.recomputed, layers)
    inputs: float = recomputed * each.input
    if mode.offload_activations and cuda:
        inputs = min(recomputed, 2) * each.input  # one on its way out or in, one at work
    return ((layers - recomputed) * each.layer + inputs) * tokens


def layer_cost(shape: Shape, mode: Mode, cuda: bool = True) -> PerToken:
    """What a token costs in this mode. SDPA on a CPU keeps each sequence's result and the row."""
    return per_token(shape, mode.torch_dtype, mode.rank, not cuda)


def training(shape: Shape, mode: Mode, batch: LargestPass, cuda: bool = True) -> dict[str, Parts]:
    """Moment of an optimiser step (not the run's first) → what holds memory then."""
    item, head, tokens = mode.torch_dtype.itemsize, shape.head_parameters, batch.tokens
    each = layer_cost(shape, mode, cuda)
    activations = kept(each, mode, shape.layers, tokens, cuda)
    ends = each.ends * tokens
    work = each.recompute if mode.recomputed else each.backward
    full = mode.trained(shape)
    gradients = float(mode.gradient_bytes(shape))
    alone = batch.alone or (mode.in_backward and not mode.one_pass)  # else they add up here
    stays = {
        "weights": mode.weight_bytes(shape),
        "optimizer state": 0.0 if mode.offload_state else full * mode.state_bytes,
    }
    whole = mode.rank is None
    accumulated = 0.0 if alone else gradients  # of the micro-batches before
    of_head = head * item if whole else 0.0
    of_layer = shape.layer_parameters * item if whole else gradients
    float32 = compute_dtype(mode.torch_dtype).itemsize
    of_head_float32 = head * float32 + (of_head if item < float32 else 0.0) if whole else 0.0
    device = torch.device("cuda" if cuda else "cpu")
    rows = chunk_rows(None, shape.vocab, item if cuda else float32, device)
    logits = min(rows, batch.responses) * shape.vocab * (item if cuda else float32)
    if mode.in_backward and alone:
        first, last = of_head, of_layer
        ended = of_head
    else:
        first = max(accumulated, of_head)
        untied = 0.0 if shape.tied else of_head
        last, ended = max(accumulated, gradients - untied), gradients
    moments: dict[str, Parts] = {
        "the head": {
            "gradients": accumulated,
            "activations": activations + ends,
            "head: logits": logits,
            "head: dW in float32": of_head_float32,
            "head: states": 2 * batch.responses * shape.hidden * item,
        },
        "the last layer, backward": {
            "gradients": first,
            "activations": activations + ends + work * tokens,
        },
        "the first layer, backward": {
            "gradients": last,
            "activations": ends / 2 + (each.layer * (not mode.recomputed) + work) * tokens,
        },
        # where the head is the embedding, its gradient waits for the embedding's
        "the embedding, backward": {
            "gradients": ended + (of_head if shape.tied or not alone else 0.0),
            "activations": 2 * shape.hidden * item * tokens,
        },
        "the optimizer": {"gradients": gradients if not mode.in_backward else of_layer},
    }
    return {name: stays | parts for name, parts in moments.items()}


def generation(
    shape: Shape, mode: Mode, batch: int, repeats: int, prompt: int, new: int
) -> dict[str, Parts]:
    """Moment of sampling → what holds memory then.

    `batch` responses together, `repeats` to a prompt; static cache.
    """
    item = mode.torch_dtype.itemsize
    entry = 2 * shape.keys * shape.layers * item
    stays = {"weights": mode.weight_bytes(shape)}
    prompts = -(-batch // repeats)
    forward = layer_cost(shape, mode).forward
    return {
        "the prompts": stays
        | {
            "generation cache": prompts * (prompt + new) * entry,
            "activations": forward * prompts * prompt,
        },
        "sampling": stays
        | {
            "generation cache": batch * (prompt + new) * entry,
            "logits": batch * shape.vocab * SAMPLING_BYTES,
        },
    }


def log_probs(shape: Shape, mode: Mode, tokens: int) -> dict[str, Parts]:
    """Moment of the reference's and the last iterate's log-probs → what holds memory then.

    One model after the other, no logits.
    """
    return {
        "a packed pass": {
            "weights": mode.weight_bytes(shape),
            "activations": layer_cost(shape, mode).forward * tokens,
            "head: states": tokens * shape.hidden * mode.torch_dtype.itemsize,
        }
    }


def shared(
    phase: str, moments: dict[str, Parts], shape: Shape, mode: Mode, ranks: int
) -> dict[str, Parts]:
    """A phase's moments on each of `ranks` devices, by what they share out in it (`SHARED`).

    A pass of training gathers two layers at a time, and for its whole length what lies outside the
    layers. Packed 4-bit weights stay whole.
    """
    if ranks == 1 or not SHARED[phase]:
        return moments
    shares = set(SHARED[phase]) - ({"weights"} if mode.quantized else set())
    outside = shape.parameters - shape.block_parameters + 2 * shape.layer_parameters
    gathered = 0 if mode.quantized else outside * mode.torch_dtype.itemsize
    return {
        name: {part: x / ranks if part in shares else x for part, x in parts.items()}
        | {"weights gathered": gathered}
        for name, parts in moments.items()
    }
