"""Which items make an optimiser step, and which of them share a packed pass.

An item is a pair of responses or a single one; groups of items are never split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Group = Sequence[int]  # item numbers


@dataclass(frozen=True)
class MicroBatch:
    """Rows of `samples`, each once, and the items among them as positions in `rows`."""

    rows: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)  # empty where items are single responses


def epoch_batches(groups: Sequence[Group], batch_size: int, seed: str) -> Iterator[list[Group]]:
    """Seeded batches of whole groups, of at most `batch_size` items (a larger group is alone)."""
    order = list(groups)
    random.Random(seed).shuffle(order)
    batch: list[Group] = []
    filled = 0
    for group in order:
        if batch and filled + len(group) > batch_size:
            yield batch
            batch, filled = [], 0
        batch.append(group)
        filled += len(group)
    if batch:
        yield batch


def micro_batches(
    batch: Sequence[Group],
    chosen: Sequence[int],
    rejected: Sequence[int] | None,
    lengths: Mapping[int, int],
    max_tokens: int,
) -> list[MicroBatch]:
    """Pack the items of a batch under the token budget; a group is never split.

    `chosen`, `rejected`: the sample rows of each item; `lengths`: tokens of each row. Groups that
    share responses come together (ordered by their rows), so each response is packed once.
    """
    sides = (chosen,) if rejected is None else (chosen, rejected)

    def rows(group: Group) -> list[int]:
        return list(dict.fromkeys(side[item] for item in group for side in sides))

    result: list[MicroBatch] = []
    places: dict[int, int] = {}  # row → its position in the micro-batch being filled
    filled = 0
    for group in sorted(batch, key=lambda g: (min(rows(g)), g[0])):
        wanted = rows(group)
        new = [row for row in wanted if row not in places]
        if not result or filled + sum(lengths[row] for row in new) > max_tokens:
            result.append(MicroBatch())
            places, filled, new = {}, 0, wanted
        current = result[-1]
        for row in new:
            places[row] = len(current.rows)
            current.rows.append(row)
            filled += lengths[row]
        current.items.extend(group)
        current.chosen.extend(places[chosen[item]] for item in group)
        if rejected is not None:
            current.rejected.extend(places[rejected[item]] for item in group)
    return result
