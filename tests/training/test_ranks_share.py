"""A step dealt to ranks: everything once, a prompt in one place, equally many passes."""

from __future__ import annotations

import os
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from comal_fast.training.batches import Group, MicroBatch, micro_batches
from comal_fast.training.ranks_share import deal, my_passes
from comal_kernels.packing import PromptResponse

Step = tuple[list[Group], list[int], list[int] | None, dict[int, PromptResponse]]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """(groups, chosen, rejected, sequences): pairs or single responses of a few prompts."""
    pairwise = draw(st.booleans())
    chosen: list[int] = []
    rejected: list[int] = []
    sequences: dict[int, PromptResponse] = {}
    for prompt in range(draw(st.integers(1, 6))):
        first, responses = len(sequences), draw(st.integers(2, 4))
        for row in range(first, first + responses):
            length = draw(st.integers(1, 30))
            sequences[row] = PromptResponse([prompt] * 5, [row] * length)
        for _ in range(draw(st.integers(1, 4))):
            a, b = draw(st.permutations(range(first, first + responses)))[:2]
            chosen.append(a)
            rejected.append(b)
    groups: list[Group] = [[item] for item in draw(st.permutations(range(len(chosen))))]
    return groups, chosen, rejected if pairwise else None, sequences


@given(steps(), st.integers(1, 4))
def test_all_is_dealt_once_and_evenly(step: Step, ranks: int) -> None:
    groups, chosen, rejected, sequences = step
    shares = deal(groups, chosen, rejected, sequences, ranks)
    assert sorted(item for share in shares for group in share for item in group) == sorted(
        item for group in groups for item in group
    )

    def tokens(items: list[int]) -> int:
        rows = {side[i] for side in (chosen, rejected or chosen) for i in items}
        prompts = {tuple(sequences[row].prompt_ids) for row in rows}
        return sum(map(len, prompts)) + sum(len(sequences[row].response_ids) for row in rows)

    prompts = [{sequences[chosen[g[0]]].prompt_ids[0] for g in share} for share in shares]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    loads = [tokens([i for g in share for i in g]) for share in shares]
    largest = max(
        tokens([g[0] for g in groups if sequences[chosen[g[0]]].prompt_ids[0] == prompt])
        for prompt in set().union(*prompts)
    )
    assert max(loads) <= sum(loads) / ranks + largest  # Graham's bound for greedy dealing


@given(steps(), st.integers(1, 4), st.sampled_from([1, 60, 1000]))
def test_ranks_make_equally_many_passes(step: Step, ranks: int, budget: int) -> None:
    groups, chosen, rejected, sequences = step

    def pack(batch: list[Group]) -> list[MicroBatch]:
        return micro_batches(batch, chosen, rejected, sequences, budget)

    passes = []
    for rank in range(ranks):
        launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(ranks), "RANK": str(rank)}
        with mock.patch.dict(os.environ, launched):
            passes.append(my_passes(groups, chosen, rejected, sequences, pack))
    assert len({len(mine) for mine in passes}) == 1
    counted = [item for mine in passes for micro, counts in mine if counts for item in micro.items]
    assert sorted(counted) == sorted(item for group in groups for item in group)
