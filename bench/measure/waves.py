"""How a head's kernels would fill a GPU that is not here: tiles, waves, cycles, share of its peak.

A tile's product takes the cycles in which the matrix units alone could do it; what follows the
product (softening, storing) takes the longer of its instructions at a scheduler's rate and its
exponentials at the special units', and runs while the matrix units wait. The rest of a call is
bytes at the memory's rate. So this is a bound from below on time, counted from machine code and
shapes; clocks cancel, since all is in cycles. What no count sees is in `ASSUMED`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from bench.measure.sass import Frequencies
from comal_kernels.engines.triton.tuning import Tile

ASSUMED = (
    "the matrix units run without a gap inside a tile's product, in cuBLAS and here",
    "four warp instructions a cycle outside of it",
    "90 % of the memory's rate, and of the L2 cache's",
    "1 µs between two launches, 5 µs of the host a launch where its queue is empty",
)
MEMORY_SHARE = 0.9
GAP, HOST = 1e-6, 5e-6  # seconds
WARPS_A_CYCLE = 4
MINOR_LAUNCHES = {"training": 13, "forward": 9}  # beside the large ones
FIRST_LAUNCHES = 4  # before the first product


@dataclass(frozen=True)
class Processor:
    """A GPU by what one multiprocessor does in a cycle."""

    name: str
    count: int
    clock: float  # Hz, at which its data sheet's rate is reached
    flops: int  # dense bfloat16, a cycle
    special: int  # exponentials, a cycle
    bandwidth: float  # bytes/s of device memory
    cache: float  # bytes of L2
    cache_bandwidth: float  # bytes/s of it; measured by others on an H100, scaled elsewhere


PROCESSORS = {
    80: Processor("A100 SXM 80 GB", 108, 1.41e9, 2048, 16, 2.04e12, 40e6, 4.0e12),
    90: Processor("H100 SXM", 132, 1.83e9, 4096, 16, 3.35e12, 50e6, 5.5e12),
    100: Processor("B200", 148, 1.85e9, 8192, 16, 8.0e12, 126e6, 10e12),
}


@dataclass(frozen=True)
class Shape:
    """A head and the rows of a call."""

    rows: int
    hidden: int
    vocab: int

    @property
    def flops(self) -> float:
        """Of one product."""
        return 2.0 * self.rows * self.hidden * self.vocab


@dataclass(frozen=True)
class Waves:
    """One kernel on one shape."""

    tiles: int
    programs: int  # at once
    waves: float  # tiles to a program
    busy: float  # share of the programs' time that has a tile
    outside: int  # a tile's instructions that are not in its product, a warp
    matrix: float  # cycles of a tile's product
    after: float  # cycles of what follows it
    seconds: float
    share: float  # of the peak


def waves(shape: Shape, tile: Tile, counted: Frequencies, gpu: Processor) -> Waves:
    """A kernel that makes the head's product tile by tile, one program a multiprocessor at once."""
    blocks = math.ceil(shape.rows / tile.block_n)
    tiles = blocks * math.ceil(shape.vocab / tile.block_v)
    programs = min(tiles, gpu.count)
    each = math.ceil(tiles / programs)
    steps = math.ceil(shape.hidden / tile.block_h)
    matrix = 2 * tile.block_n * tile.block_v * steps * tile.block_h / gpu.flops
    outside = sum(counted.tile.values())
    issued = outside * tile.warps / WARPS_A_CYCLE
    special = counted.tile["MUFU"] * tile.warps * 32 / gpu.special
    inside = sum(counted.step.values()) * steps * tile.warps / WARPS_A_CYCLE
    after = max(issued, special)
    seconds = each * (max(matrix, inside) + after) / gpu.clock
    return Waves(
        tiles, programs, tiles / programs, tiles / (programs * each), outside, matrix, after,
        seconds, shape.flops / (seconds * peak(gpu)),
    )  # fmt: skip


def peak(gpu: Processor) -> float:
    """FLOP/s of the matrix units."""
    return gpu.count * gpu.flops * gpu.clock


@dataclass(frozen=True)
class Candidate:
    """A way to make a call, and what would show that the prediction is wrong."""

    name: str
    call: str  # training or forward
    seconds: float
    share: float  # of the products' time at the peak
    refuted: str


def candidates(
    shape: Shape, tile: Tile, soft: dict[str, Frequencies], gpu: Processor
) -> list[Candidate]:
    """The ways to make a call, the fastest by this count first.

    soft: `soften_kernel`'s instructions by call; forward only it stores nothing.
    """
    found = []
    for call, counted in soft.items():
        products = 3 if call == "training" else 1
        product = shape.flops / peak(gpu)
        fused = waves(shape, tile, counted, gpu)
        rest = minor(shape, tile, call, gpu) + (products - 1) * product
        hidden = waves(shape, tile, replace(counted, tile=Counter()), gpu)
        ways = {
            "softened as the product is made": (
                fused.seconds,
                "`bench profile head`: soften_kernel over 1.05 × a product of cuBLAS's",
            ),
            "the same, softened beside the next tile's product": (
                hidden.seconds,
                "`bench tune`: a kernel with specialised warps no faster than the one above",
            ),
            "cuBLAS by slices that stay in cache, then softened": (
                sliced(shape, call == "training", gpu)[0],
                "`bench tune`: faster than the first",
            ),
        }
        for name, (first, refuted) in ways.items():
            seconds = first + rest
            share = products * product / seconds
            found.append(Candidate(name, call, seconds, share, refuted))
        idle = fused.seconds + rest + FIRST_LAUNCHES * HOST
        found.append(
            Candidate(
                "the first, called while the GPU is idle",
                call,
                idle,
                products * product / idle,
                "`bench head --forward-only`: more than this behind a captured graph of the call",
            )
        )
    return found


def minor(shape: Shape, tile: Tile, call: str, gpu: Processor) -> float:
    """Seconds of what is no product: the targets' logits, sums, factors."""
    n, h = shape.rows, shape.hidden
    moved = 2 * n * h * 2 + math.ceil(shape.vocab / tile.block_v) * n * 4
    if call == "training":
        moved += n * h * (2 + 2) + n * h * (4 + 2)  # x and dH by their rows' factors
    return moved / (gpu.bandwidth * MEMORY_SHARE) + MINOR_LAUNCHES[call] * GAP


def sliced(shape: Shape, store: bool, gpu: Processor) -> tuple[float, int, int]:
    """(seconds, rows, words): cuBLAS's float32 logits, swept while half of the cache holds them."""
    best = (math.inf, 0, 0)
    for rows in (512 * 2**i for i in range(8)):
        rows = min(rows, shape.rows)
        words = int(gpu.cache / 2 / 4 / rows) // 256 * 256
        if not words:
            continue
        count = math.ceil(shape.rows / rows) * math.ceil(shape.vocab / words)
        tiles = math.ceil(rows / 128) * math.ceil(words / 256)
        turns = math.ceil(tiles / gpu.count)
        product = turns * 2 * 128 * 256 * shape.hidden / gpu.flops / gpu.clock
        sweep = rows * words * (4 + 2 * store) / (gpu.cache_bandwidth * MEMORY_SHARE)
        best = min(best, (count * (product + sweep + 2 * GAP), rows, words))
    return best


def rows_that_hide_sums(gpu: Processor, loss: float = 0.05) -> int:
    """Rows of a chunk from which dW's float32 sums, read and written once, cost at most `loss`.

    Bytes over products: the shape of the head cancels.
    """
    return math.ceil(8 / (gpu.bandwidth * MEMORY_SHARE) * peak(gpu) / 2 / loss)
