"""How often each instruction of a compiled kernel runs: a step of its product, a tile, a program.

Read from the control flow: the shortest way round that passes the matrix instructions is a step of
the product; what else can be reached round about is once a tile; the rest once a program.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")
MATRIX = re.compile(r"\b(?:UTC[A-Z]*MMA|HGMMA|HMMA|QGMMA)\b")
TARGET = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Frequencies:
    """Instructions of one warp, by name without suffix: each step of the product, tile, program."""

    step: Counter[str]
    tile: Counter[str]
    program: Counter[str]


@dataclass
class _Block:
    names: list[str]
    next: list[int]  # addresses of the blocks that can follow


def frequencies(code: str) -> Frequencies:
    """Of a kernel's SASS, as cuobjdump prints it; ValueError where it has no matrix instruction."""
    blocks = _blocks(code)
    matrix = {at for at, block in blocks.items() if any(MATRIX.match(n) for n in block.names)}
    if not matrix:
        raise ValueError("code: no matrix instruction")
    ways = [way for at in matrix if (way := _round(blocks, at)) is not None]
    step = min(ways, key=lambda way: sum(len(blocks[at].names) for at in way), default=set(matrix))
    start = next(iter(matrix))
    around = _reached(blocks, start) & {at for at in blocks if start in _reached(blocks, at)}
    return Frequencies(
        _count(blocks, step), _count(blocks, around - step), _count(blocks, set(blocks) - around)
    )


def _blocks(code: str) -> dict[int, _Block]:
    lines = [
        (int(at, 16), predicate, name, rest) for at, predicate, name, rest in LINE.findall(code)
    ]
    targets = {
        int(found[1], 16)
        for _, _, name, rest in lines
        if name == "BRA" and (found := TARGET.search(rest))
    }
    blocks: dict[int, _Block] = {}
    current: _Block | None = None
    for at, predicate, name, rest in lines:
        if current is None or at in targets:
            if current is not None:
                current.next.append(at)
            current = blocks[at] = _Block([], [])
        current.names.append(name)
        if name in ("BRA", "EXIT", "RET"):
            found = TARGET.search(rest) if name == "BRA" else None
            if found:
                current.next.append(int(found[1], 16))
            if predicate:
                following = blocks[at + 16] = _Block([], [])
                current.next.append(at + 16)
                current = following
            else:
                current = None
    return {at: block for at, block in blocks.items() if block.names}


def _reached(blocks: dict[int, _Block], start: int) -> set[int]:
    """Blocks that can run after the block at `start`, itself where it comes round again."""
    seen: set[int] = set()
    left = list(blocks[start].next)
    while left:
        at = left.pop()
        if at not in seen and at in blocks:
            seen.add(at)
            left += blocks[at].next
    return seen


def _round(blocks: dict[int, _Block], start: int) -> set[int] | None:
    """The blocks of the shortest way from `start` to itself, in instructions; None: none."""
    queue: list[tuple[int, int, tuple[int, ...]]] = [(0, start, (start,))]
    best: dict[int, int] = {}
    while queue:
        cost, at, way = heapq.heappop(queue)
        for following in blocks[at].next:
            if following == start:
                return set(way)
            total = cost + len(blocks[following].names) if following in blocks else cost
            if following in blocks and total < best.get(following, 1 << 60):
                best[following] = total
                heapq.heappush(queue, (total, following, (*way, following)))
    return None


def _count(blocks: dict[int, _Block], some: set[int]) -> Counter[str]:
    return Counter(name.split(".")[0] for at in some for name in blocks[at].names)
