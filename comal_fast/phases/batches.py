"""Which pairs make an optimiser step, and which of them share a packed pass."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Rows of `samples`, each once, and the pairs among them as positions in `rows`."""

    rows: list[int]
    pairs: list[int]
    chosen: list[int]
    rejected: list[int]


def epoch_batches(count: int, batch_size: int, seed: str) -> Iterator[list[int]]:
    """Seeded batches of pair numbers; the last may be smaller."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


def micro_batches(
    batch: Sequence[int],
    chosen: Sequence[int],
    rejected: Sequence[int],
    lengths: Mapping[int, int],
    max_tokens: int,
) -> list[MicroBatch]:
    """Pack the pairs of a batch under the token budget; a pair is never split.

    `chosen`, `rejected`: the sample row of each pair; `lengths`: tokens of each row. Pairs that
    share responses come together (ordered by their rows), so each response is packed once.
    """
    result: list[MicroBatch] = []
    filled = 0
    for number in sorted(batch, key=lambda n: (min(chosen[n], rejected[n]), n)):
        ends = (chosen[number], rejected[number])
        new = [row for row in ends if not result or row not in result[-1].rows]
        tokens = sum(lengths[row] for row in new)
        if not result or filled + tokens > max_tokens:
            result.append(MicroBatch([], [], [], []))
            filled, new = 0, list(ends)
            tokens = sum(lengths[row] for row in new)
        current = result[-1]
        current.rows.extend(new)
        filled += tokens
        current.pairs.append(number)
        current.chosen.append(current.rows.index(ends[0]))
        current.rejected.append(current.rows.index(ends[1]))
    return result
