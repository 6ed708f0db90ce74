"""Which responses share a packed pass: bin packing by tokens, a prompt counted once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from comal_kernels.packing.sequences import PromptResponse

Unit = Sequence[int]  # rows that must share a pass


def fill_bins(
    units: Sequence[Unit], sequences: Mapping[int, PromptResponse], budget: int
) -> list[list[int]]:
    """Numbers of the units of each pass; every unit stands in one.

    `sequences`: of each row. A pass has at most `budget` tokens through the model; a unit of more
    stands alone. The units of a prompt come together; where they are too many for a pass they are
    parted, and the prompt goes through the model more than once. Best-fit decreasing.
    """
    cost = _Cost(units, sequences)
    by_prompt: dict[int, list[int]] = {}
    for number, unit in enumerate(units):
        by_prompt.setdefault(cost.prompt[unit[0]], []).append(number)
    pieces = [piece for part in by_prompt.values() for piece in _pieces(part, units, cost, budget)]
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), in order
    for piece in sorted(pieces, key=lambda p: -p.tokens):
        place = bisect_left(room, (piece.tokens, 0))
        left, number = room.pop(place) if place < len(room) else (budget, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number] += piece.units
        insort(room, (left - piece.tokens, number))
    return bins


class _Piece(NamedTuple):
    units: list[int]
    tokens: int


class _Cost:
    """Tokens of rows, shared prompts and rows counted once."""

    def __init__(self, units: Sequence[Unit], sequences: Mapping[int, PromptResponse]) -> None:
        numbers: dict[Hashable, int] = {}
        self.prompt: dict[int, int] = {}  # row → number of its prompt
        self.own: dict[int, int] = {}  # row → tokens of its response
        self.length: dict[int, int] = {}  # prompt → its tokens
        for row in (row for unit in units for row in unit):
            if row not in self.prompt:
                prompt = numbers.setdefault(sequences[row].prompt, len(numbers))
                self.prompt[row], self.length[prompt] = prompt, len(sequences[row].prompt_ids)
                self.own[row] = len(sequences[row].inputs)

    def __call__(self, rows: Iterable[int], beside: set[int] | None = None) -> int:
        """Tokens that `rows` add where those of `beside` are there already."""
        beside = beside or set()
        new = {*rows} - beside
        prompts = {self.prompt[r] for r in new} - {self.prompt[r] for r in beside}
        return sum(self.own[r] for r in new) + sum(self.length[p] for p in prompts)


def _pieces(part: list[int], units: Sequence[Unit], cost: _Cost, budget: int) -> list[_Piece]:
    """The units of one prompt, all together if they fit.

    Else parted so that few responses stand in two pieces: next comes whoever adds least.
    """
    whole = cost(row for number in part for row in units[number])
    if whole <= budget or len(part) == 1:
        return [_Piece(part, whole)]
    pieces, rest = [], list(part)
    while rest:
        members = [rest.pop(0)]
        rows = {*units[members[0]]}
        tokens = cost(rows)
        while rest:
            added, place = min((cost(units[n], rows), i) for i, n in enumerate(rest))
            if tokens + added > budget:
                break
            members.append(rest.pop(place))
            rows |= {*units[members[-1]]}
            tokens += added
        pieces.append(_Piece(members, tokens))
    return pieces
