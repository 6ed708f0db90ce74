"""judge: the full K×K preference matrix of every prompt's samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import make_oracle, self_comparison
from comal_fast.phases import generate
from comal_fast.store.artefacts import make_key, read_table, table_key, write_table
from comal_fast.system.terminal import progress


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "judgments.parquet"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/judgments.parquet from the samples."""
    samples = read_table(generate.path(context, iteration))
    oracle = make_oracle(context.config.oracle)
    upstream = table_key(generate.path(context, iteration))
    wanted = make_key("judge", upstream, oracle.fingerprint())
    artefact = path(context, iteration)
    if table_key(artefact) == wanted:
        return
    metrics = context.metrics("judge", iteration)
    groups = responses_by_prompt(samples)
    comparisons = [self_comparison(prompt, responses) for prompt, responses in groups.values()]
    matrices = []
    with progress(f"judge iteration {iteration}", len(groups), "prompts") as advance:
        for matrix in oracle.compare(comparisons):
            matrices.append(matrix)
            advance()
    cycles = [has_strict_cycle(m) for m in matrices]
    table = pa.table(
        {
            "prompt_id": pa.array(list(groups), pa.int32()),
            "matrix": pa.array([m.ravel().tolist() for m in matrices], pa.list_(pa.float64())),
            "cycle": pa.array(cycles, pa.bool_()),
        }
    )
    metrics.log(
        oracle__cycle_rate=float(np.mean(cycles)),
        oracle__decisiveness=float(np.mean([_decisiveness(m) for m in matrices])),
        perf__seconds=advance.seconds,
    )
    write_table(artefact, table, wanted)
    context.note("judge", iteration)


def responses_by_prompt(samples: pa.Table) -> dict[int, tuple[str, list[str]]]:
    """prompt_id → (prompt, its responses in order)."""
    groups: dict[int, tuple[str, list[str]]] = {}
    for number, prompt, response in zip(
        *(samples[c].to_pylist() for c in ("prompt_id", "prompt", "response")), strict=True
    ):
        groups.setdefault(number, (prompt, []))[1].append(response)
    return groups


def win_rates(matrix: np.ndarray) -> np.ndarray:
    """(K,) P̂(y ≻ π_t) of each response: its mean over the other samples in (K, K) P."""
    result: np.ndarray = (matrix.sum(axis=1) - matrix.diagonal()) / (len(matrix) - 1)
    return result


def read_matrices(context: Context, iteration: int) -> dict[int, np.ndarray]:
    """prompt_id → (K, K) P, in the order of judgments.parquet, which is that of the samples."""
    judgments = read_table(path(context, iteration))
    columns = (judgments[c].to_pylist() for c in ("prompt_id", "matrix"))
    matrices = {}
    for number, flat in zip(*columns, strict=True):
        size = math.isqrt(len(flat))
        matrices[number] = np.array(flat).reshape(size, size)
    return matrices


def _decisiveness(matrix: np.ndarray) -> float:
    upper = matrix[np.triu_indices(len(matrix), 1)]
    return float(np.abs(2 * upper - 1).mean())
