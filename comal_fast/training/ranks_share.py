"""Which of an optimiser step's packed passes are this rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from comal_fast.system.ranks import rank, world
from comal_fast.training.batches import Group, MicroBatch
from comal_kernels.packing import PromptResponse


def my_passes(
    batch: Sequence[Group],
    chosen: Sequence[int],
    rejected: Sequence[int] | None,
    sequences: Mapping[int, PromptResponse],
    pack: Callable[[Sequence[Group]], list[MicroBatch]],
) -> list[tuple[MicroBatch, bool]]:
    """(a packed pass, whether it counts) of this rank's share of a step.

    Every rank makes equally many, since all of them take part in gathering the parameters; one that
    has fewer repeats the step's shortest for nothing.
    """
    if world() == 1:
        return [(micro, True) for micro in pack(batch)]
    parts = [pack(share) for share in deal(batch, chosen, rejected, sequences, world())]
    mine = [(micro, True) for micro in parts[rank()]]
    every = (micro for part in parts for micro in part)
    filler = min(every, key=lambda micro: sum(len(sequences[row]) for row in micro.rows))
    return mine + [(filler, False)] * (max(map(len, parts)) - len(mine))


def deal(
    batch: Sequence[Group],
    chosen: Sequence[int],
    rejected: Sequence[int] | None,
    sequences: Mapping[int, PromptResponse],
    ranks: int,
) -> list[list[Group]]:
    """The groups of a step dealt to `ranks`, each about equally many tokens.

    Groups of one prompt stay together, so that nothing is computed twice. The longest bundle goes
    first, each to the rank that has least.
    """
    sides = (chosen,) if rejected is None else (chosen, rejected)
    bundles: dict[tuple[int, ...], list[Group]] = {}
    rows: dict[tuple[int, ...], set[int]] = {}
    for group in batch:
        prompt = tuple(sequences[chosen[group[0]]].prompt_ids)
        bundles.setdefault(prompt, []).append(group)
        rows.setdefault(prompt, set()).update(side[item] for item in group for side in sides)
    tokens = {
        prompt: len(prompt) + sum(len(sequences[row].response_ids) for row in rows[prompt])
        for prompt in bundles
    }
    shares: list[list[Group]] = [[] for _ in range(ranks)]
    filled = [0] * ranks
    for prompt in sorted(bundles, key=lambda p: (-tokens[p], min(rows[p]))):
        least = filled.index(min(filled))
        shares[least] += bundles[prompt]
        filled[least] += tokens[prompt]
    return shares
