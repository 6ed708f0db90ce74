"""One value of an option against another: every measure of the difference, paired, with intervals.

Cells with one seed hold out the same prompts, of which they are a block. Where a sweep has several,
each block has one value per prompt, and intervals cover seeds and prompts (`statistics.seeds`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from comal_fast.statistics import NOWHERE, Array, Interval
from comal_fast.sweep.blocks import Block
from comal_fast.sweep.grid import Axis
from comal_fast.sweep.prompt_values import (
    Kind,
    SeedValues,
    equal_length_interval_of,
    interval_of,
    pseudo_values,
)

# columns of `_rows`: each of both settings, or of the first against the second
WIN, NATS, VERSUS, EXTRA, SECOND, SECOND_VERSUS = slice(0, 2), slice(2, 4), 4, 5, slice(6, 8), 8


@dataclass(frozen=True)
class Effect:
    """One value of an option against another, everything else the same, averaged over the rest."""

    axis: Axis
    a: str
    b: str
    difference: Interval
    """Win rate against the initial policy: of `a` minus of `b`, paired by prompt."""
    joint: Interval
    """The same at 95 % over all effects of the sweep together (Bonferroni)."""
    head_to_head: Interval
    """Win rate of `a`'s policies against `b`'s."""
    pairs: int
    """Pairs of cells that it averages over."""
    equal_length: Interval = NOWHERE
    """`head_to_head` if both were equally long."""
    equal_kl: Interval = NOWHERE
    """`difference` if both were as near to the initial policy as the nearer is: `at_equal_kl`."""
    second: Interval = NOWHERE
    """`difference` as the second judge sees it."""
    second_head_to_head: Interval = NOWHERE
    """`head_to_head` as the second judge sees it."""


def find_effects(axes: Sequence[Axis], blocks: list[Block]) -> list[Effect]:
    """An effect per two values of an axis, where cells differ in it alone and share prompts."""
    wanted = [(axis, a, b) for axis in axes for b, a in combinations(axis.values, 2)]
    found = [(axis, a, b, _matches(axis, a, b, blocks)) for axis, a, b in wanted]
    found = [each for each in found if any(each[3])]
    level = 1 - 0.05 / max(1, len(found))
    return [_effect(axis, a, b, pairs, blocks, level) for axis, a, b, pairs in found]


def at_equal_kl(means: Array) -> Array:
    """Difference of win rates at the lesser of two KLs, of (…, 4): win rates, then KLs in nats.

    What a policy gains over the initial one is taken to grow with the square root of its KL to it
    (Gao et al., arXiv 2210.10760, without their term for over-optimisation): the further one is
    seen on its way. NaN where one of them has not moved.
    """
    gain, nats = means[..., :2] - 0.5, means[..., 2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = gain * np.sqrt(nats.min(axis=-1, keepdims=True) / nats)
    return np.asarray(np.where((nats > 0).all(axis=-1), scaled[..., 0] - scaled[..., 1], np.nan))


def _effect(
    axis: Axis, a: str, b: str, pairs: list[list[tuple[int, int]]], blocks: list[Block],
    level: float,
) -> Effect:  # fmt: skip
    """`pairs`: of each block, the places in it of cells with `a` and with `b`."""
    used = [(block, own) for block, own in zip(blocks, pairs, strict=True) if own]
    held_out = [block.results[0].held_out for block, _ in used]
    # of each block the mean over its pairs of cells, by prompt: (n, 9)
    tables = [np.mean([_rows(block, i, j) for i, j in own], axis=0) for block, own in used]

    def interval(of: Callable[[Array], Array], kind: Kind, level: float = 0.95) -> Interval:
        values = [pseudo_values(of, table) for table in tables]
        return interval_of(list(map(SeedValues, held_out, values)), kind, level)

    def difference(of: slice) -> Callable[[Array], Array]:
        return lambda means: means[:, of][:, 0] - means[:, of][:, 1]

    controlled = NOWHERE
    if all(np.isfinite(table[:, VERSUS]).all() for table in tables):
        versus = [SeedValues(h, x[:, VERSUS]) for h, x in zip(held_out, tables, strict=True)]
        controlled = equal_length_interval_of(versus, [x[:, EXTRA] for x in tables])
    return Effect(
        axis, a, b,
        difference=interval(difference(WIN), "difference"),
        joint=interval(difference(WIN), "difference", level),
        head_to_head=interval(lambda means: means[:, VERSUS], "rate"),
        pairs=sum(map(len, pairs)),
        equal_length=controlled,
        equal_kl=interval(lambda means: at_equal_kl(means[:, :4]), "mean"),
        second=interval(difference(SECOND), "difference"),
        second_head_to_head=interval(lambda means: means[:, SECOND_VERSUS], "rate"),
    )  # fmt: skip


def _rows(block: Block, i: int, j: int) -> Array:
    """(n, 9) of two cells of a block; NaN where nobody was asked."""
    one, other = block.results[i], block.results[j]
    columns = [one.wins, other.wins, one.nats, other.nats]
    unknown = np.full(len(one.wins), np.nan)
    if block.game is None:
        columns += [unknown] * 2
    else:
        columns += [block.game.wins[i, j], block.game.lengths[i] - block.game.lengths[j]]
    if block.second is None:
        columns += [unknown] * 3
    else:  # whose first entrant is the initial policy
        wins = block.second.wins
        columns += [wins[i + 1, 0], wins[j + 1, 0], wins[i + 1, j + 1]]
    return np.stack(columns, axis=1)


def _matches(axis: Axis, a: str, b: str, blocks: Sequence[Block]) -> list[list[tuple[int, int]]]:
    """Per block: (place of a cell with a, with b), all other settings the same."""
    found = []
    for block in blocks:
        places = {
            json.dumps(r.cell.settings, sort_keys=True): i for i, r in enumerate(block.results)
        }
        pairs = []
        for i, r in enumerate(block.results):
            other = json.dumps({**r.cell.settings, axis.key: b}, sort_keys=True)
            if r.cell.settings[axis.key] == a and (j := places.get(other)) is not None:
                pairs.append((i, j))
        found.append(pairs)
    return found
