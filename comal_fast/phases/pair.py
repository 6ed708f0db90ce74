"""pair: which of the judged samples are trained against each other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.artefacts import make_key, read_table, table_key, write_table
from comal_fast.context import Context
from comal_fast.phases import generate, judge
from comal_fast.terminal import console


def choose_pairs(matrix: np.ndarray, strategy: str) -> list[tuple[int, int]]:
    """(chosen, rejected) among the K responses of (K, K) P, ranked by mean win rate.

    The strategy names the two; the one that P prefers is `chosen`. Pairs on which the oracle is
    undecided (P = ½, identical responses among them) teach nothing under hard labels: left out.
    """
    wins = (matrix.sum(axis=1) - matrix.diagonal()) / (len(matrix) - 1)
    ranked = sorted(range(len(matrix)), key=lambda i: (-wins[i], i))
    candidates = {
        "best_worst": [(ranked[0], ranked[-1])],
        "best_second": [(ranked[0], ranked[1])],
        "all": list(combinations(ranked, 2)),
    }[strategy]
    ordered = [(a, b) if matrix[a, b] >= 0.5 else (b, a) for a, b in candidates]
    return [(a, b) for a, b in ordered if matrix[a, b] > 0.5 + 1e-9]


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "pairs.parquet"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/pairs.parquet from the judgments."""
    judgments = read_table(judge.path(context, iteration))
    samples = read_table(generate.path(context, iteration))
    strategy = context.config.pairing.strategy
    wanted = make_key("pair", table_key(judge.path(context, iteration)), strategy)
    artefact = path(context, iteration)
    if table_key(artefact) == wanted:
        return
    metrics = context.metrics("pair", iteration)
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(samples["prompt_id"].to_pylist()):
        rows.setdefault(number, []).append(row)
    pairs = []
    for number, flat in zip(
        *(judgments[c].to_pylist() for c in ("prompt_id", "matrix")), strict=True
    ):
        here = rows[number]
        matrix = np.array(flat).reshape(len(here), len(here))
        pairs += [
            (number, here[a], here[b], float(matrix[a, b]))
            for a, b in choose_pairs(matrix, strategy)
        ]
    if not pairs:
        raise ValueError(
            f"iteration {iteration}: no pairs, the oracle prefers no response to another"
        )
    types = {
        "prompt_id": pa.int32(),
        "chosen": pa.int32(),
        "rejected": pa.int32(),
        "preference": pa.float64(),
    }
    columns = zip(types.items(), zip(*pairs, strict=True), strict=True)
    table = pa.table({name: pa.array(values, kind) for (name, kind), values in columns})
    metrics.log(
        comal__pairs=table.num_rows,
        comal__preference=float(np.mean(table["preference"].to_pylist())),
        perf__seconds=0.0,
    )
    write_table(artefact, table, wanted)
    context.note("pair", iteration)
    console.print(f"[green]✓[/] {f'pair iteration {iteration}':<34} {table.num_rows} pairs")
