"""Batches and packed passes: every item once, no group split, every response once a pass."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise as neighbours

import torch
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.training.batches import epoch_batches, micro_batches
from comal_kernels.packing import PromptResponse, fill_bins, pack

PAIRS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]),
    min_size=1,
    max_size=30,
)
SIZES = st.lists(st.integers(1, 20), min_size=13, max_size=13)
PROMPTS = st.lists(st.integers(0, 4), min_size=13, max_size=13)


def rows_of(prompts: list[int], sizes: list[int]) -> dict[int, PromptResponse]:
    """Row i answers prompt prompts[i], which has 3 tokens more than its number."""
    return {
        row: PromptResponse([prompt] * (prompt + 3), [7] * size)
        for row, (prompt, size) in enumerate(zip(prompts, sizes, strict=True))
    }


def tokens(sequences: dict[int, PromptResponse], rows: Iterable[int]) -> int:
    """As `pack` really lays them out."""
    return pack([sequences[row] for row in dict.fromkeys(rows)], torch.device("cpu")).tokens


@given(PAIRS, st.integers(1, 60), SIZES, PROMPTS, st.booleans(), st.integers(1, 5))
def test_micro_batches(
    pairs: list[tuple[int, int]],
    budget: int,
    sizes: list[int],
    prompts: list[int],
    pairwise: bool,
    group: int,
) -> None:
    """Pairs or single responses (some of them twice), alone or in groups, of any prompts."""
    chosen, rejected = zip(*pairs, strict=True)
    sequences = rows_of(prompts, sizes)
    numbers = range(len(pairs))
    groups = [numbers[start : start + group] for start in numbers[::group]]
    parts = micro_batches(groups, chosen, rejected if pairwise else None, sequences, budget)
    assert parts == micro_batches(groups, chosen, rejected if pairwise else None, sequences, budget)
    assert sorted(n for part in parts for n in part.items) == list(numbers)
    for members in groups:
        assert sum(members[0] in part.items for part in parts) == 1
        assert all(set(members) <= set(p.items) for p in parts if members[0] in p.items)
    for part in parts:
        assert len(set(part.rows)) == len(part.rows)
        assert [part.rows[c] for c in part.chosen] == [chosen[n] for n in part.items]
        expected = [rejected[n] for n in part.items] if pairwise else []
        assert [part.rows[r] for r in part.rejected] == expected
        alone = any(set(part.items) == set(members) for members in groups)
        assert tokens(sequences, part.rows) <= budget or alone


@given(SIZES, PROMPTS, st.integers(1, 120))
def test_bins(sizes: list[int], prompts: list[int], budget: int) -> None:
    """Prompts that fit are not parted; no two bins would fit into one."""
    sequences = rows_of(prompts, sizes)
    bins = fill_bins([[row] for row in sequences], sequences, budget)
    assert sorted(row for rows in bins for row in rows) == list(sequences)
    used = [tokens(sequences, rows) for rows in bins]
    for rows, size in zip(bins, used, strict=True):
        assert size <= budget or len(rows) == 1
    for prompt in set(prompts):
        mine = [row for row in sequences if prompts[row] == prompt]
        if tokens(sequences, mine) <= budget:
            assert sum(bool({*mine} & {*rows}) for rows in bins) == 1
    smallest = sorted(used)[:2]
    assert len(bins) == 1 or sum(smallest) > budget


def test_parted_pairs_share_what_they_can() -> None:
    """All pairs of 6 responses, three at a time: greedy parts, not one pass a pair."""
    sequences = rows_of([0] * 6, [11] * 6)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    budget = tokens(sequences, range(4))
    parts = micro_batches([[n] for n in range(15)], *zip(*pairs, strict=True), sequences, budget)
    assert [len(part.rows) for part in parts[:1]] == [4] and len(parts[0].items) == 6
    assert len(parts) <= 5 and all(tokens(sequences, p.rows) <= budget for p in parts)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=50), st.integers(1, 9), st.integers(0, 3))
def test_epochs(sizes: list[int], batch_size: int, seed: int) -> None:
    groups = [[(number, i) for i in range(size)] for number, size in enumerate(sizes)]
    batches = list(epoch_batches(groups, batch_size, str(seed)))
    assert sorted(g for batch in batches for g in batch) == groups
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        filled = sum(map(len, batch))
        assert filled <= batch_size or len(batch) == 1
        assert following is None or filled + len(following[0]) > batch_size
    assert batches == list(epoch_batches(groups, batch_size, str(seed)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9))
def test_prompts_stay_together(prompts: list[int], batch_size: int) -> None:
    groups = [[item] for item in range(len(prompts))]
    batches = list(epoch_batches(groups, batch_size, "0", lambda group: prompts[group[0]]))
    order = [item for batch in batches for (item,) in batch]
    assert sorted(order) == list(range(len(prompts)))
    changes = sum(prompts[a] != prompts[b] for a, b in neighbours(order))
    assert changes == len(set(prompts)) - 1
    assert all(len(batch) == batch_size for batch in batches[:-1])
