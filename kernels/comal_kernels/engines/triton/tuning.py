"""Launch shapes of the Triton kernels: fixed tables, so that no step ever waits for a search.

BASIS says where a table comes from: "static" (compiled without a GPU: no spills, matrix
instructions present, room in shared memory for the pipeline) or "measured" (bench/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """One configuration of a kernel that holds the head's product."""

    block_n: int
    block_v: int
    block_h: int
    warps: int
    stages: int
    tma: bool = False  # loads by tensor descriptors (sm_90 and newer; strides multiples of 16)
    persistent: bool = False  # a program a processor: loads go on while a tile is finished


Table = dict[tuple[torch.dtype, str], Tile]


def _table(even: Tile, aligned: Tile, odd: Tile, wide: Tile | None = None) -> Table:
    """The tile for each dtype and way that the head fits.

    "even": a width that BLOCK_H divides; "aligned": that 16 does; "odd"; "wide": aligned, with
    neither bias nor cap, for which a larger tile has registers.

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
        table[dtype, "odd"] = odd
        if wide is not None:
            table[dtype, "wide"] = wide
    return table


_STEADY = Tile(128, 128, 64, 8, 4, tma=True, persistent=True)
_ODD = Tile(64, 64, 32, 4, 2)
_AMPERE = _table(Tile(128, 128, 32, 8, 4), Tile(128, 128, 32, 8, 4), _ODD)
_WIDE = Tile(128, 256, 64, 8, 3, tma=True, persistent=True)
_HOPPER = _table(_STEADY, _STEADY, _ODD, wide=_WIDE)
_QUARTET = Tile(128, 128, 64, 4, 4, tma=True)  # with 8 warps Triton 3.9 can't cap and store
_NARROW = Tile(64, 32, 32, 4, 2)
_BLACKWELL = _table(_QUARTET, _QUARTET, _NARROW)
# Where a block has 99 KiB of shared memory (RTX 30, 40 and 50, A10, L4, L40S), Ampere's tiles take
# half of it; the compiler spills in a few, and those are smaller or shallower here.
_RTX_30 = _AMPERE | {(torch.float32, "odd"): Tile(64, 32, 16, 8, 2)}
_RTX_50 = _AMPERE | {(torch.float32, "even"): _AMPERE[torch.float32, "aligned"]}
_RTX_50_SOFTEN = _RTX_50 | {(dtype, "odd"): _NARROW for dtype in (torch.bfloat16, torch.float16)}
# Compute capability × 10 → table: A100; RTX 30, A10 and A40; RTX 40, L4 and L40S; H100 and H200;
# B200 and B300; RTX 50 and RTX PRO.
FORWARD: dict[int, Table] = {
    80: _AMPERE,
    86: _RTX_30,
    89: _RTX_30,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _RTX_50,
}
SOFTEN: dict[int, Table] = FORWARD | {120: _RTX_50_SOFTEN}
# Dtypes whose logits are softened as the product makes them. In float32 cuBLAS is far ahead of
# tl.dot; float16 has no room for exp(z − shift).
SOFT = {arch: {torch.bfloat16} for arch in SOFTEN}
BASIS = dict.fromkeys(FORWARD, "static") | {90: "measured"}  # its wide bfloat16 tile, on an H200
# Bytes of shared memory that a block can have, as CUDA's programming guide lists them.
SHARED_MEMORY = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
EPILOGUE_BLOCK = 2048  # columns that one program handles at a time
EPILOGUE_WARPS = 8
SCALE_PROGRAMS = 8  # programs a multiprocessor of `scale_in_place_kernel`
STATISTICS_BLOCK = 1024  # the same of `statistics_kernel`, which twice as many make spill
GROUP = 8  # blocks of rows whose tiles run together
PICK_BLOCK = 1024  # words' coordinates that one program handles at a time
COMBINE_ROWS = 32
COMBINE_SPLITS = 32  # partial results of a row that are read at a time
MAX_SPLITS = 32  # of the vocabulary


def nearest(arch: int) -> int:
    """Return the table's architecture for a device's: the newest that is not newer.

    So 87 has 86's, 103 and 110 have 100's (all with tcgen05), and 121 has 120's.
    """
    return max((known for known in FORWARD if known <= arch), default=min(FORWARD))


def soft(arch: int, dtype: torch.dtype) -> bool:
    """Whether training holds softened logits (`soften_kernel`) rather than raw ones."""
    return dtype in SOFT[nearest(arch)]


def choose(
    tables: dict[int, Table], arch: int, dtype: torch.dtype, width: int, aligned: bool, plain: bool
) -> tuple[Tile, bool]:
    """The tile for states of that width, and whether its BLOCK_H divides it.

    aligned: 16 divides the strides and addresses; plain: the head has neither bias nor cap.
    """
    table = tables[nearest(arch)]
    if not aligned:
        return table[dtype, "odd"], False
    if plain and (dtype, "wide") in table:
        tile = table[dtype, "wide"]
    elif width % table[dtype, "even"].block_h == 0:
        tile = table[dtype, "even"]
    else:
        tile = table[dtype, "aligned"]
    return tile, width % tile.block_h == 0


def split_vocabulary(row_blocks: int, tiles: int, processors: int) -> tuple[int, int]:
    """(splits, tiles of each): about two programs a processor, no empty split."""
    wanted = max(1, min(MAX_SPLITS, tiles, -(-2 * processors // max(1, row_blocks))))
    each = -(-tiles // wanted)
    return -(-tiles // each), each
