"""pair: what is trained on, judged samples against each other, or each against all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.config import Config
from comal_fast.config.validate import target_of
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.game.pair_selection import (
    choose_pairs,
    label_matrix,
    mean_win_rates,
    target_margins,
)
from comal_fast.phases import given
from comal_fast.phases.generate import first_rows, rows_by_prompt
from comal_fast.phases.judge import read_matrices
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.terminal import done
from comal_fast.training.items import keeps_draws, uses_margins
from comal_kernels import PROX

PAIRS = pa.schema(
    [
        ("prompt_id", pa.int32()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("preference", pa.float64()),
        ("count", pa.int32()),
        ("margin", pa.float64()),
    ]
)


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/pairs.parquet from the judgments, or from `data.pairs` with samples.

    A response that was sampled more than once goes by its first row, and never meets itself;
    an item that comes up more than once is one row with its count.
    """
    config, folder = context.config, context.directory.iteration(iteration)
    people = config.data.pairs is not None
    pairwise = PROX[config.algorithm.prox].pairwise
    options = _key_options(config, iteration) if pairwise else None
    key = (
        given.pairs_key(context, iteration)
        if people
        else make_key("pair", folder.judgments.key(), options)
    )

    def work() -> Made:
        if people:
            items = merged((*item, None) for item in given.write_samples(context, iteration))
        else:
            judged = _pairs(context, iteration) if pairwise else _responses(context, iteration)
            items = merged(judged)
        if not items:
            who = "people prefer" if people else "the oracle prefers"
            raise InputError(f"iteration {iteration}: no pairs, {who} no response to another")
        columns = zip(*items, strict=True)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, PAIRS, strict=True)], PAIRS)
        counts = table["count"].to_numpy()
        found = f"{counts.sum():,} {'pairs' if pairwise else 'responses'}, {len(counts):,} distinct"
        done(f"pair iteration {iteration}", found)
        return table, {
            "comal/pairs": int(counts.sum()),
            "comal/preference": float(np.average(table["preference"].to_numpy(), weights=counts)),
        }

    make(context, "pair", iteration, folder.pairs, key, work)


# a row of PAIRS without its count: prompt_id, chosen, rejected, preference, margin or None
Item = tuple[int, int, int | None, float, float | None]


def merged(
    items: Iterable[Item],
) -> list[tuple[int, int, int | None, float, int, float | None]]:
    """Return each item once, in order of appearance, with its mean labels and its count."""
    seen: dict[tuple[int, int, int | None], list[tuple[float, float | None]]] = {}
    for number, chosen, rejected, preference, margin in items:
        seen.setdefault((number, chosen, rejected), []).append((preference, margin))
    rows = []
    for item, labels in seen.items():
        preferences, margins = zip(*labels, strict=True)
        mean = None if None in margins else sum(margins) / len(margins)
        rows.append((*item, sum(preferences) / len(labels), len(labels), mean))
    return rows


def _key_options(config: Config, iteration: int) -> list[Any]:
    """Return what the pairs depend on besides the judgments, as older versions wrote it."""
    options: list[Any] = [config.pairing.strategy, keeps_draws(config)]
    if uses_margins(config) or config.pairing.labels == "sampled":
        options += [config.pairing.labels, target_of(config)]
    if config.pairing.labels == "sampled":
        options += [config.seed, iteration]
    return options


def _pairs(context: Context, iteration: int) -> Iterator[Item]:
    config = context.config
    target, margins = target_of(config), uses_margins(config)
    for number, matrix, rows in _by_prompt(context, iteration):
        seed = f"{config.seed} labels {iteration} {number}"
        judged = label_matrix(matrix, config.pairing.labels, rows, seed)
        pairs = choose_pairs(
            matrix,
            config.pairing.strategy,
            texts=rows,
            draws=keeps_draws(config),
            halves=target == "cross_fit",
        )
        drawn = judged if config.pairing.labels == "sampled" else matrix
        for (a, b), margin in zip(pairs, target_margins(judged, pairs, target), strict=True):
            yield number, rows[a], rows[b], float(drawn[a, b]), margin if margins else None


def _responses(context: Context, iteration: int) -> Iterator[Item]:
    for number, matrix, rows in _by_prompt(context, iteration):
        for row, wins in zip(rows, mean_win_rates(matrix).tolist(), strict=True):
            yield number, row, None, wins, None


def _by_prompt(context: Context, iteration: int) -> Iterator[tuple[int, np.ndarray, list[int]]]:
    """Yield (prompt_id, (K, K) P, the first row of each response, in the matrix's order)."""
    samples = context.directory.iteration(iteration).samples.read()
    firsts, rows = first_rows(samples), rows_by_prompt(samples)
    for number, matrix in read_matrices(context, iteration).items():
        yield number, matrix, [firsts[row] for row in rows[number]]
