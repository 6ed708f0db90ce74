"""Plans: every row once, a pair's rows in one chunk, chunks within the capacity."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_kernels.chunks import components, make_plan, pieces


@st.composite
def cases(draw):
    count = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    cu = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    total = int(cu[-1])
    ignored = draw(st.lists(st.booleans(), min_size=total, max_size=total))
    target = np.where(np.array(ignored, bool), -100, np.arange(total)).astype(np.int64)
    index = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(index, index), min_size=1, max_size=8))
    chosen, rejected = np.array(pairs, np.int64).T
    groups = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return target, cu, chosen, rejected, np.array(groups, np.int64), draw(st.integers(1, 30))


@settings(max_examples=80, deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_plan_covers_everything_once(case, pairwise, grouped, grad) -> None:
    target, cu, chosen, rejected, group, capacity = case
    second = rejected if pairwise else None
    plan = make_plan(
        target,
        cu,
        chosen,
        second,
        ignore_index=-100,
        capacity=capacity,
        grad=grad,
        group=group if grouped else None,
    )
    kept = np.flatnonzero(target != -100)
    assert sorted(plan.row) == kept.tolist()
    assert (plan.target == target[plan.row]).all()
    assert sorted(plan.seq) == list(range(len(cu) - 1))
    assert sorted(plan.pair) == list(range(len(chosen)))
    owner = np.searchsorted(cu, plan.row, side="right") - 1
    assert (owner == np.repeat(plan.seq, plan.seq_rows)).all()

    # chunks tile every array in order
    for name, size in [
        ("rows", len(plan.row)),
        ("seqs", len(plan.seq)),
        ("pairs", len(plan.pair)),
        ("links", len(plan.link_pair)),
        ("groups", len(plan.group_pairs)),
    ]:
        spans = [getattr(c, name) for c in plan.chunks]
        edges = [s.start for s in spans] + [spans[-1].stop]
        assert edges[0] == 0 and edges[-1] == size
        assert all(a.stop == b.start for a, b in zip(spans[:-1], spans[1:], strict=True))

    # links rebuild the pairs
    links = np.repeat(plan.seq, plan.seq_links)
    for sign, ends in ((1, chosen), (-1, second)):
        if ends is not None:
            at = plan.link_sign == sign
            found = sorted(zip(plan.pair[plan.link_pair[at]], links[at], strict=True))
            assert found == list(enumerate(ends))

    for chunk in plan.chunks:
        members = set(plan.seq[chunk.seqs].tolist())
        used = plan.pair[chunk.pairs]
        assert set(chosen[used].tolist()) <= members
        assert second is None or set(second[used].tolist()) <= members
        assert chunk.whole == (chunk.rows.stop - chunk.rows.start <= capacity)
        if grouped:  # runs of equal groups, a group in one chunk only
            runs = np.split(group[chosen[used]], np.cumsum(plan.group_pairs[chunk.groups])[:-1])
            assert all(len(set(run.tolist())) <= 1 for run in runs)
            inside, outside = group[chosen[used]], np.delete(chosen, used)
            assert not set(inside.tolist()) & set(group[outside].tolist())


def test_components_of_a_long_chain() -> None:
    """The worst case of hooking: a path whose ends are far apart, in shuffled order."""
    path = np.random.default_rng(0).permutation(500)
    label = components(503, path[:-1], path[1:])
    assert len(set(label[path])) == 1
    assert sorted(set(label[500:])) == [500, 501, 502]


def test_chunks_fill_up() -> None:
    """Eight pairs of 2 × 4 rows, 16 rows a chunk: four chunks of two pairs."""
    cu = np.arange(0, 65, 4)
    seqs = np.arange(16)
    target = np.zeros(64, np.int64)
    plan = make_plan(target, cu, seqs[::2], seqs[1::2], ignore_index=-1, capacity=16, grad=True)
    assert [c.rows.stop - c.rows.start for c in plan.chunks] == [16] * 4
    assert (plan.row == np.arange(64)).all()  # in the caller's order where that fits


def test_pieces_are_even() -> None:
    assert [s.stop - s.start for s in pieces(slice(5, 26), 10)] == [7, 7, 7]
    assert pieces(slice(3, 3), 10) == []
