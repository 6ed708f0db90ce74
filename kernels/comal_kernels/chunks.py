"""Index plans, built on the host: which rows are projected, in which order, in which chunks.

A chunk holds whole connected components of the pair graph, so that every coefficient is known as
soon as the chunk's own log-probs are, and its logits can become gradients where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comal_kernels.transfer import Ints


@dataclass(frozen=True)
class Chunk:
    """Slices into a plan's arrays. `whole`: its rows fit the buffer, so it is projected once."""

    rows: slice
    seqs: slice
    pairs: slice
    links: slice
    groups: slice
    whole: bool


@dataclass(frozen=True)
class Plan:
    """Everything in chunk order. S sequences, N projected rows, P pairs, L = 2P (or P) links."""

    chunks: tuple[Chunk, ...]
    row: Ints  # (N,) positions among T
    target: Ints  # (N,) vocabulary indices
    seq: Ints  # (S,) sequences
    seq_rows: Ints  # (S,) projected rows of each
    pair: Ints  # (P,) pairs
    link_pair: Ints  # (L,) rank of the pair that moves a sequence, sorted by sequence
    link_sign: Ints  # (L,) +1 chosen, −1 rejected
    seq_links: Ints  # (S,) links of each sequence
    group_pairs: Ints  # (G,) listed responses of each group; empty without groups


def pieces(rows: slice, capacity: int) -> list[slice]:
    """`rows` as the fewest slices of at most `capacity` rows, of about equal length, in order."""
    n = rows.stop - rows.start
    count = -(-n // capacity)
    edges = [rows.start + n * i // count for i in range(count + 1)] if n else []
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def components(count: int, a: Ints, b: Ints) -> Ints:
    """(count,) the smallest member of each node's component in the graph with edges a[i]–b[i].

    By hooking and pointer jumping.
    """
    label = np.arange(count)
    while True:
        low = np.minimum(label[a], label[b])
        new = label.copy()
        np.minimum.at(new, label[a], low)
        np.minimum.at(new, label[b], low)
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new


def _edges(chosen: Ints, rejected: Ints | None, group: Ints | None) -> tuple[Ints, Ints]:
    a, b = (chosen, chosen) if rejected is None else (chosen, rejected)
    if group is None:
        return a, b
    _, first, inverse = np.unique(group[chosen], return_index=True, return_inverse=True)
    return np.concatenate([a, chosen]), np.concatenate([b, chosen[first][inverse]])


def _pack(label: Ints, seq_rows: Ints, paired: NDArray[np.bool_], capacity: int) -> Ints:
    """(S,) chunk of each sequence: components in order, then all sequences of no pair."""
    rows = np.bincount(label, weights=seq_rows, minlength=len(label)).astype(np.int64)
    chunk_of = np.zeros(len(label), np.int64)  # by component
    chunk, used = 0, 0
    for c in np.unique(label[paired]).tolist():
        if used and used + rows[c] > capacity:
            chunk, used = chunk + 1, 0
        chunk_of[c] = chunk
        used += int(rows[c])
    result = chunk_of[label]
    result[~paired] = chunk + 1
    return result


def make_plan(
    target: Ints,  # (T,)
    cu: Ints,  # (S + 1,)
    chosen: Ints,  # (P,)
    rejected: Ints | None,  # (P,)
    *,
    ignore_index: int,
    capacity: int,
    grad: bool,  # without it nothing binds a pair's rows together: one chunk
    group: Ints | None = None,  # (S,)
) -> Plan:
    """The plan of one prox loss; cost O((T + S + P) log) on the host."""
    count = len(cu) - 1
    kept = np.flatnonzero(target != ignore_index)
    bounds = np.searchsorted(kept, cu)  # kept rows of sequence s: bounds[s] … bounds[s + 1]
    seq_rows = np.diff(bounds)
    paired = np.zeros(count, bool)
    paired[chosen] = True
    if rejected is not None:
        paired[rejected] = True
    chunk = np.zeros(count, np.int64)
    seq = np.arange(count)
    if grad:
        label = components(count, *_edges(chosen, rejected, group))
        chunk = _pack(label, seq_rows, paired, capacity)
        seq = np.lexsort((seq, label, chunk))
    rank = np.empty(count, np.int64)
    rank[seq] = np.arange(count)

    group_of = np.zeros(len(chosen), np.int64) if group is None else group[chosen]
    pair = np.lexsort((rank[chosen], group_of, chunk[chosen]))
    pair_rank = np.empty(len(pair), np.int64)
    pair_rank[pair] = np.arange(len(pair))
    ends = [rank[chosen]] if rejected is None else [rank[chosen], rank[rejected]]
    link_seq = np.concatenate(ends)
    link_pair = np.tile(pair_rank, len(ends))
    link_sign = np.repeat(np.array([1, -1][: len(ends)]), len(chosen))
    by_seq = np.lexsort((link_pair, link_seq))
    group_key = np.stack([chunk[chosen][pair], group_of[pair]]) if group is not None else None

    starts = bounds[:-1][seq]
    lengths = seq_rows[seq]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row = kept[np.repeat(starts, lengths) + within]
    seq_links = np.bincount(link_seq, minlength=count)
    group_pairs, group_chunk = _runs(group_key)
    return Plan(
        chunks=_chunks(chunk[seq], lengths, chunk[chosen][pair], seq_links, group_chunk, capacity),
        row=row,
        target=target[row],
        seq=seq,
        seq_rows=lengths,
        pair=pair,
        link_pair=link_pair[by_seq],
        link_sign=link_sign[by_seq],
        seq_links=seq_links,
        group_pairs=group_pairs,
    )


def _runs(key: Ints | None) -> tuple[Ints, Ints]:  # (2, P) → length and chunk of each run
    if key is None or key.shape[1] == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)])
    return np.diff(np.r_[starts, key.shape[1]]), key[0][starts]


def _chunks(
    seq_chunk: Ints, rows: Ints, pair_chunk: Ints, links: Ints, group_chunk: Ints, capacity: int
) -> tuple[Chunk, ...]:
    row_edge = np.r_[0, np.cumsum(rows)]
    link_edge = np.r_[0, np.cumsum(links)]
    result = []
    for c in np.unique(seq_chunk).tolist():
        lo, hi = (int(i) for i in np.searchsorted(seq_chunk, [c, c + 1]))
        p, q = (int(i) for i in np.searchsorted(pair_chunk, [c, c + 1]))
        g, h = (int(i) for i in np.searchsorted(group_chunk, [c, c + 1]))
        span = slice(int(row_edge[lo]), int(row_edge[hi]))
        result.append(
            Chunk(
                rows=span,
                seqs=slice(lo, hi),
                pairs=slice(p, q),
                links=slice(int(link_edge[lo]), int(link_edge[hi])),
                groups=slice(g, h),
                whole=span.stop - span.start <= capacity,
            )
        )
    return tuple(result)
