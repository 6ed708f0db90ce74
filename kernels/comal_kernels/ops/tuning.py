"""Launch shapes of the Triton kernels: fixed tables, so that no step ever waits for a search.

BASIS says where a table comes from: "static" (compiled without a GPU: no spills, matrix
instructions present, room in shared memory for the pipeline) or "measured".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """One configuration of the forward product."""

    block_n: int
    block_v: int
    block_h: int
    warps: int
    stages: int


Table = dict[tuple[torch.dtype, str], Tile]


def _table(even: Tile, aligned: Tile) -> Table:
    """By dtype and how the width fits: "even": a multiple of BLOCK_H; "aligned": of 16; "odd".

    An odd width has no asynchronous loads, and the addresses of a wider tile alone overflow the
    registers.
    """
    table: Table = {
        (torch.float32, "even"): Tile(64, 64, 32, 8, 3),
        (torch.float32, "aligned"): Tile(64, 64, 16, 8, 3),
        (torch.float32, "odd"): Tile(64, 64, 16, 8, 2),
    }
    for dtype in (torch.bfloat16, torch.float16):
        table[dtype, "even"] = even
        table[dtype, "aligned"] = aligned
        table[dtype, "odd"] = Tile(64, 64, 32, 8, 2)
    return table


# compute capability × 10 → table: A100; H100 and H200; B200
FORWARD: dict[int, Table] = {
    80: _table(Tile(128, 128, 32, 8, 4), Tile(128, 128, 32, 8, 4)),
    90: _table(Tile(128, 128, 64, 8, 4), Tile(128, 128, 32, 8, 4)),
    100: _table(Tile(128, 128, 64, 8, 4), Tile(128, 128, 32, 8, 4)),
}
BASIS = {80: "static", 90: "static", 100: "static"}
EPILOGUE_BLOCK = 4096  # columns that one program handles at a time
EPILOGUE_WARPS = 8
COMBINE_ROWS = 32
MAX_SPLITS = 32  # of the vocabulary


def nearest(arch: int) -> int:
    """The table's architecture for a device's: the newest that is not newer."""
    return max((known for known in FORWARD if known <= arch), default=min(FORWARD))


def forward_tile(arch: int, dtype: torch.dtype, width: int, aligned: bool) -> tuple[Tile, bool]:
    """The tile for states of that width, and whether it divides it. aligned: strides do by 16."""
    table = FORWARD[nearest(arch)]
    even = table[dtype, "even"]
    if aligned and width % even.block_h == 0:
        return even, True
    return table[dtype, "aligned" if aligned else "odd"], False


def split_vocabulary(row_blocks: int, tiles: int, processors: int) -> tuple[int, int]:
    """(splits, tiles of each): about two programs a processor, no empty split."""
    wanted = max(1, min(MAX_SPLITS, tiles, -(-2 * processors // max(1, row_blocks))))
    each = -(-tiles // wanted)
    return -(-tiles // each), each
