"""Training on several nodes, on paper: FSDP2's bytes over each link, what hides them, what fits.

Every packed pass gathers each layer's weights twice, forward and backward, what lies outside the
layers once, and sums the gradients, in float32, into their owners' parts. Bytes are counted; rates
are a data sheet's. Inside a node a GPU takes in what it has not; what other nodes hold comes into a
node once, shared out over its GPUs' network cards (NCCL's rings over all of them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from comal_fast.plan import memory
from comal_fast.plan.count import parts
from comal_fast.plan.machines import Machine, predict
from comal_fast.plan.memory import LargestPass, shared
from comal_fast.plan.modes import Mode
from comal_fast.plan.search import TYPICAL_PROMPT, TYPICAL_RESPONSE, Workload, usable
from comal_fast.plan.shapes import Shape

GATHERED_WIDTH = 4  # bytes of a gradient on its way: summed in float32
LARGEST, SMALLEST = 1 << 17, 1 << 10  # tokens of a pass that are tried


@dataclass(frozen=True)
class Traffic:
    """Bytes of one packed pass, those that a GPU takes in and its network card takes in."""

    inside: float
    between: float

    def seconds(self, machine: Machine) -> float:
        """All of it, with nothing beside it; either link works while the other does."""
        return max(self.inside / machine.link, self.between / machine.network)


@dataclass(frozen=True)
class Several:
    """One mode on so many GPUs, each with one packed pass a step."""

    nodes: int
    gpus: int  # of all nodes
    mode: Mode
    tokens: int  # of a pass, a GPU
    most: int  # tokens of the largest pass that fits
    bytes: float  # at the peak of training, a GPU
    traffic: Traffic
    compute: float  # seconds of a step of one pass a GPU
    communication: float  # seconds of its traffic
    exposed: float  # of those, what no computation hides

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    @property
    def hidden_from(self) -> float:
        """Tokens of a pass from which its computation takes as long as its traffic."""
        return self.tokens * self.communication / self.compute

    @property
    def rate(self) -> float:
        """Tokens a second, of all GPUs."""
        return self.gpus * self.tokens / self.seconds


def traffic(shape: Shape, mode: Mode, gpus: int, nodes: int) -> Traffic:
    """What a pass moves where weights, gradients and moments are shared out over `gpus`."""
    item = 0 if mode.quantized else mode.torch_dtype.itemsize  # packed weights stay whole
    outside = shape.parameters - shape.block_parameters
    moved = 2.0 * shape.block_parameters * item + outside * item
    moved += mode.trained(shape) * GATHERED_WIDTH
    return _over(moved, gpus, nodes)


def _over(moved: float, gpus: int, nodes: int) -> Traffic:
    inside = moved * (gpus - 1) / gpus if gpus > nodes else 0.0
    return Traffic(inside, moved * (nodes - 1) / nodes / (gpus / nodes))


def plan(
    shape: Shape, mode: Mode, work: Workload, machine: Machine, memory_bytes: float, per_node: int,
    nodes: int, given: int | None = None,
) -> Several | None:  # fmt: skip
    """The fastest pass that fits, by its tokens (or of `given`) and recomputed layers; or None."""
    gpus, found = per_node * nodes, []
    sizes = [LARGEST >> i for i in range((LARGEST // SMALLEST).bit_length())]
    for tokens in [given] if given else sizes:
        for recomputed in (0, shape.layers // 2, shape.layers):
            tried = replace(mode, recomputed=recomputed)
            held = max(tokens, work.longest) if given else tokens
            moments = memory.training(shape, tried, LargestPass(held, held, True))
            peak = memory.peak(shared("train", moments, shape, tried, gpus))
            if held >= work.longest and peak.bytes <= usable(memory_bytes):
                found.append(_timed(shape, tried, work, machine, tokens, peak.bytes, gpus, nodes))
                break
    if not found:
        return None
    return replace(max(found, key=lambda x: x.rate), most=max(x.tokens for x in found))


def _timed(
    shape: Shape, mode: Mode, work: Workload, machine: Machine, tokens: int, held: float, gpus: int,
    nodes: int,
) -> Several:  # fmt: skip
    pair = min(TYPICAL_PROMPT, work.prompt) + 2 * min(TYPICAL_RESPONSE, work.new)
    own = replace(work, pairs=max(1, tokens // pair), budget=tokens, shared=1, responses=2)
    load = own.load(mode, shape)
    trained = max(1, mode.trained(shape) // gpus)
    load = replace(load, micro_batches=1, trained=trained)
    compute = sum(row["seconds"] for row in predict(machine, parts(shape, load)))
    if mode.offload_state and machine.host:
        copies = trained * mode.state_bytes / machine.host
        compute = max(compute, copies) if mode.in_backward else compute + copies
    moved = traffic(shape, mode, gpus, nodes)
    communication = moved.seconds(machine)
    # the first layer's weights, and the last layer's gradients, have nothing beside them
    ends = communication / (1.5 * shape.layers)
    exposed = ends + max(0.0, communication - ends - compute)
    return Several(
        nodes, gpus, mode, load.tokens, load.tokens, held, moved, compute, communication, exposed
    )
