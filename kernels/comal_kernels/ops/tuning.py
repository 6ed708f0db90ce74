"""Launch shapes of the Triton kernels: fixed tables, so that no step ever waits for a search.

Figures are from the static model (no spills, matrix instructions present), not yet from a GPU.
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


# by dtype and how the width fits: "even": a multiple of BLOCK_H; "aligned": of 16 elements; "odd":
# no load is asynchronous, and the addresses of a wider tile alone overflow the registers
FORWARD = {
    (torch.bfloat16, "even"): Tile(128, 128, 64, 8, 3),
    (torch.float16, "even"): Tile(128, 128, 64, 8, 3),
    (torch.float32, "even"): Tile(64, 64, 32, 8, 3),
    (torch.bfloat16, "aligned"): Tile(128, 128, 32, 8, 4),
    (torch.float16, "aligned"): Tile(128, 128, 32, 8, 4),
    (torch.float32, "aligned"): Tile(64, 64, 16, 8, 3),
    (torch.bfloat16, "odd"): Tile(64, 64, 32, 8, 2),
    (torch.float16, "odd"): Tile(64, 64, 32, 8, 2),
    (torch.float32, "odd"): Tile(64, 64, 16, 8, 2),
}
EPILOGUE_BLOCK = 4096  # columns that one program handles at a time
EPILOGUE_WARPS = 8
COMBINE_ROWS = 32
MAX_SPLITS = 32  # of the vocabulary


def forward_tile(dtype: torch.dtype, width: int, aligned: bool) -> tuple[Tile, bool]:
    """The tile for states of that width, and whether it divides it. aligned: strides do by 16."""
    even = FORWARD[dtype, "even"]
    if aligned and width % even.block_h == 0:
        return even, True
    return FORWARD[dtype, "aligned" if aligned else "odd"], False


def split_vocabulary(row_blocks: int, tiles: int, processors: int) -> tuple[int, int]:
    """(splits, tiles of each): about two programs a processor, no empty split."""
    wanted = max(1, min(MAX_SPLITS, tiles, -(-2 * processors // max(1, row_blocks))))
    each = -(-tiles // wanted)
    return -(-tiles // each), each
