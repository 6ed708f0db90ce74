"""Batches and packed passes: every pair once, never split, every response once a pass."""

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


@given(PAIRS, st.integers(1, 60), st.lists(st.integers(1, 20), min_size=13, max_size=13))
def test_micro_batches(pairs: list[tuple[int, int]], budget: int, sizes: list[int]) -> None:
    chosen, rejected = zip(*pairs, strict=True)
    lengths = dict(enumerate(sizes))
    parts = micro_batches(range(len(pairs)), chosen, rejected, lengths, budget)
    assert sorted(n for part in parts for n in part.pairs) == list(range(len(pairs)))
    for part in parts:
        assert len(set(part.rows)) == len(part.rows)
        ends = [
            (part.rows[c], part.rows[r]) for c, r in zip(part.chosen, part.rejected, strict=True)
        ]
        assert ends == [pairs[n] for n in part.pairs]
        assert sum(lengths[row] for row in part.rows) <= budget or len(part.pairs) == 1


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 3))
def test_epochs(count: int, size: int, seed: int) -> None:
    batches = list(epoch_batches(count, size, str(seed)))
    assert sorted(n for b in batches for n in b) == list(range(count))
    assert all(len(b) == size for b in batches[:-1])
    assert batches == list(epoch_batches(count, size, str(seed)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_token_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert [i for b in batches for i in b] == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
