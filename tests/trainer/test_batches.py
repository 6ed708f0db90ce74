"""Batches and packed passes: every item once, no group split, every response once a pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from comal_fast.model.packed import token_budget_batches
from comal_fast.phases.batches import epoch_batches, micro_batches

PAIRS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]),
    min_size=1,
    max_size=30,
)
SIZES = st.lists(st.integers(1, 20), min_size=13, max_size=13)


@given(PAIRS, st.integers(1, 60), SIZES, st.booleans(), st.integers(1, 5))
def test_micro_batches(
    pairs: list[tuple[int, int]], budget: int, sizes: list[int], pairwise: bool, group: int
) -> None:
    """Pairs or single responses (some of them twice), alone or in groups."""
    chosen, rejected = zip(*pairs, strict=True)
    lengths = dict(enumerate(sizes))
    numbers = range(len(pairs))
    groups = [numbers[start : start + group] for start in numbers[::group]]
    parts = micro_batches(groups, chosen, rejected if pairwise else None, lengths, budget)
    assert sorted(n for part in parts for n in part.items) == list(numbers)
    for members in groups:
        assert sum(members[0] in part.items for part in parts) == 1
        assert all(set(members) <= set(p.items) for p in parts if members[0] in p.items)
    for part in parts:
        assert len(set(part.rows)) == len(part.rows)
        assert [part.rows[c] for c in part.chosen] == [chosen[n] for n in part.items]
        expected = [rejected[n] for n in part.items] if pairwise else []
        assert [part.rows[r] for r in part.rejected] == expected
        alone = len(part.items) <= group
        assert sum(lengths[row] for row in part.rows) <= budget or alone


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


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_token_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert [i for b in batches for i in b] == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
