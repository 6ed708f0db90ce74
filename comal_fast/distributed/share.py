"""Which of an optimiser step's packed passes are this rank's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from comal_fast.distributed.ranks import rank, world
from comal_fast.phases.batches import Group, MicroBatch


def deal(
    batch: Sequence[Group],
    rows: Callable[[Group], Iterable[int]],
    lengths: Mapping[int, int],
    ranks: int,
) -> list[list[Group]]:
    """The groups of a step dealt to `ranks`, each about equally many tokens.

    `rows`: the responses of a group; groups that share one stay together, so that none is computed
    twice. The longest bundle goes first, each to the rank that has least.
    """
    bundles: list[tuple[set[int], list[Group]]] = []
    for group in batch:
        seen, together = set(rows(group)), [group]
        apart = []
        for other, groups in bundles:
            if other.isdisjoint(seen):
                apart.append((other, groups))
            else:
                seen, together = seen | other, groups + together
        bundles = [*apart, (seen, together)]
    sizes = [sum(lengths[row] for row in seen) for seen, _ in bundles]
    shares: list[list[Group]] = [[] for _ in range(ranks)]
    filled = [0] * ranks
    for index in sorted(range(len(bundles)), key=lambda i: (-sizes[i], min(bundles[i][0]))):
        least = filled.index(min(filled))
        shares[least] += bundles[index][1]
        filled[least] += sizes[index]
    return shares


def my_passes(
    batch: Sequence[Group],
    rows: Callable[[Group], Iterable[int]],
    lengths: Mapping[int, int],
    pack: Callable[[Sequence[Group]], list[MicroBatch]],
) -> list[tuple[MicroBatch, bool]]:
    """(a packed pass, whether it counts) of this rank's share of a step.

    Every rank makes equally many, since all of them take part in gathering the parameters; one that
    has fewer repeats the step's shortest for nothing.
    """
    if world() == 1:
        return [(micro, True) for micro in pack(batch)]
    parts = [pack(share) for share in deal(batch, rows, lengths, world())]
    mine = [(micro, True) for micro in parts[rank()]]
    filler = min((m for part in parts for m in part), key=lambda m: sum(lengths[r] for r in m.rows))
    return mine + [(filler, False)] * (max(map(len, parts)) - len(mine))
