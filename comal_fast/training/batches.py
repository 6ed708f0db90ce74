"""Which items make an optimiser step, and which of them share a packed pass.

An item is a pair of responses or a single one; groups of items are never split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from comal_kernels.packing import PromptResponse, fill_bins

Group = Sequence[int]  # item numbers


@dataclass(frozen=True)
class MicroBatch:
    """Rows of `samples`, each once, and the items among them as positions in `rows`."""

    rows: list[int]
    items: list[int]
    chosen: list[int]
    rejected: list[int]  # empty where items are single responses


def epoch_batches(
    groups: Sequence[Group],
    batch_size: int,
    seed: str,
    prompt: Callable[[Group], Hashable] | None = None,
) -> Iterator[list[Group]]:
    """Seeded batches of whole groups, of at most `batch_size` items (a larger group is alone).

    `prompt`: the groups of one value come one after another.
    """
    order = list(groups)
    random.Random(seed).shuffle(order)
    if prompt is not None:
        place: dict[Hashable, int] = {}
        for group in order:
            place.setdefault(prompt(group), len(place))
        order.sort(key=lambda group: place[prompt(group)])
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
    sequences: Mapping[int, PromptResponse],
    max_tokens: int,
) -> list[MicroBatch]:
    """Pack the items of a batch under the token budget (`fill_bins`); a group is never split.

    `chosen`, `rejected`: the sample rows of each item; `sequences`: of each row.
    """
    sides = (chosen,) if rejected is None else (chosen, rejected)
    units = [list(dict.fromkeys(side[i] for i in group for side in sides)) for group in batch]
    result = []
    for numbers in fill_bins(units, sequences, max_tokens):
        rows = list(dict.fromkeys(row for n in numbers for row in units[n]))
        place = {row: position for position, row in enumerate(rows)}
        items = [item for n in numbers for item in batch[n]]
        lost = [] if rejected is None else [place[rejected[item]] for item in items]
        result.append(MicroBatch(rows, items, [place[chosen[item]] for item in items], lost))
    return result
