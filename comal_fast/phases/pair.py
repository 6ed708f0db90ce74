"""pair: what is trained on, judged samples against each other, or each against all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.phases import given
from comal_fast.phases.generate import first_rows, rows_by_prompt
from comal_fast.phases.judge import read_matrices, win_rates
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.terminal import done
from comal_fast.training.items import keeps_draws
from comal_kernels import PROX

PAIRS = pa.schema(
    [
        ("prompt_id", pa.int32()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("preference", pa.float64()),
        ("count", pa.int32()),
    ]
)


def choose_pairs(
    matrix: np.ndarray, strategy: str, *, draws: bool = False
) -> list[tuple[int, int]]:
    """(chosen, rejected) among the K responses of (K, K) P, ranked by mean win rate.

    The strategy names the two; the one that P prefers is `chosen`. Pairs on which the oracle is
    undecided (P = ½) teach nothing under hard labels: left out, unless `draws`.
    """
    wins = win_rates(matrix)
    ranked = sorted(range(len(matrix)), key=lambda i: (-wins[i], i))
    candidates = {
        "best_worst": [(ranked[0], ranked[-1])],
        "best_second": [(ranked[0], ranked[1])],
        "all": list(combinations(ranked, 2)),
    }[strategy]
    ordered = [(a, b) if matrix[a, b] >= 0.5 else (b, a) for a, b in candidates]
    return [(a, b) for a, b in ordered if draws or matrix[a, b] > 0.5 + 1e-9]


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/pairs.parquet from the judgments, or from `data.pairs` with samples.

    A response that was sampled more than once goes by its first row, and never meets itself;
    an item that comes up more than once is one row with its count.
    """
    config, folder = context.config, context.directory.iteration(iteration)
    people = config.data.pairs is not None
    pairwise, draws = PROX[config.algorithm.prox].pairwise, keeps_draws(config)
    options = [config.pairing.strategy, draws] if pairwise else None
    key = (
        given.pairs_key(context, iteration)
        if people
        else make_key("pair", folder.judgments.key(), options)
    )

    def work() -> Made:
        if people:
            items = merged(given.write_samples(context, iteration))
        else:
            matrices, samples = read_matrices(context, iteration), folder.samples.read()
            items = merged((_pairs if pairwise else _responses)(context, matrices, samples))
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


Item = tuple[int, int, int | None, float]  # a row of PAIRS, uncounted


def merged(items: Iterable[Item]) -> list[tuple[int, int, int | None, float, int]]:
    """Each item once, in order of appearance, with its mean preference and its count."""
    seen: dict[tuple[int, int, int | None], list[float]] = {}
    for number, chosen, rejected, preference in items:
        seen.setdefault((number, chosen, rejected), []).append(preference)
    return [(*item, sum(labels) / len(labels), len(labels)) for item, labels in seen.items()]


def _pairs(context: Context, matrices: dict[int, np.ndarray], samples: pa.Table) -> Iterator[Item]:
    config = context.config
    for number, matrix, rows in _by_prompt(matrices, samples):
        pairs = choose_pairs(matrix, config.pairing.strategy, draws=keeps_draws(config))
        for a, b in pairs:
            if rows[a] != rows[b]:
                yield number, rows[a], rows[b], float(matrix[a, b])


def _responses(
    context: Context, matrices: dict[int, np.ndarray], samples: pa.Table
) -> Iterator[Item]:
    for number, matrix, rows in _by_prompt(matrices, samples):
        for row, wins in zip(rows, win_rates(matrix).tolist(), strict=True):
            yield number, row, None, wins


def _by_prompt(
    matrices: dict[int, np.ndarray], samples: pa.Table
) -> Iterator[tuple[int, np.ndarray, list[int]]]:
    """(prompt_id, (K, K) P, the first row of each response, in the matrix's order)."""
    firsts, rows = first_rows(samples), rows_by_prompt(samples)
    for number, matrix in matrices.items():
        yield number, matrix, [firsts[row] for row in rows[number]]
