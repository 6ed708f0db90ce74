"""pair: what is trained on, judged samples against each other, or each against all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.phases import generate, judge
from comal_fast.store.artefacts import make_key, read_table, table_key, write_table
from comal_fast.system.terminal import console
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
    wins = judge.win_rates(matrix)
    ranked = sorted(range(len(matrix)), key=lambda i: (-wins[i], i))
    candidates = {
        "best_worst": [(ranked[0], ranked[-1])],
        "best_second": [(ranked[0], ranked[1])],
        "all": list(combinations(ranked, 2)),
    }[strategy]
    ordered = [(a, b) if matrix[a, b] >= 0.5 else (b, a) for a, b in candidates]
    return [(a, b) for a, b in ordered if draws or matrix[a, b] > 0.5 + 1e-9]


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "pairs.parquet"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/pairs.parquet from the judgments.

    A response that was sampled more than once goes by its first row, and never meets itself;
    an item that comes up more than once is one row with its count.
    """
    pairwise, draws = PROX[context.config.algorithm.prox].pairwise, keeps_draws(context.config)
    wanted = make_key(
        "pair",
        table_key(judge.path(context, iteration)),
        [context.config.pairing.strategy, draws] if pairwise else None,
    )
    artefact = path(context, iteration)
    if table_key(artefact) == wanted:
        return
    metrics = context.metrics("pair", iteration)
    matrices = judge.read_matrices(context, iteration)
    samples = read_table(generate.path(context, iteration))
    items = merged((_pairs if pairwise else _responses)(context, matrices, samples))
    if not items:
        raise InputError(
            f"iteration {iteration}: no pairs, the oracle prefers no response to another"
        )
    columns = zip(*items, strict=True)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, PAIRS, strict=True)], PAIRS)
    counts = table["count"].to_numpy()
    metrics.log(
        comal__pairs=int(counts.sum()),
        comal__preference=float(np.average(table["preference"].to_numpy(), weights=counts)),
        perf__seconds=0.0,
    )
    write_table(artefact, table, wanted)
    context.note("pair", iteration)
    found = f"{counts.sum():,} {'pairs' if pairwise else 'responses'}, {len(counts):,} distinct"
    console.print(f"[green]✓[/] {f'pair iteration {iteration}':<34} {found}")


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
        for row, wins in zip(rows, judge.win_rates(matrix).tolist(), strict=True):
            yield number, row, None, wins


def _by_prompt(
    matrices: dict[int, np.ndarray], samples: pa.Table
) -> Iterator[tuple[int, np.ndarray, list[int]]]:
    """(prompt_id, (K, K) P, the first row of each response)."""
    rows: dict[int, list[int]] = {}
    firsts = generate.first_rows(samples)
    for number, first in zip(samples["prompt_id"].to_pylist(), firsts, strict=True):
        rows.setdefault(number, []).append(first)
    for number, matrix in matrices.items():
        yield number, matrix, rows[number]
