"""judge: the full K×K preference matrix of every prompt's samples."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.distributed.collective import collective
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import (
    Messages,
    Oracle,
    conversations,
    make_oracle,
    oracle_key,
    self_comparison,
)
from comal_fast.phases.generate import rows_by_prompt
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.terminal import progress


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/judgments.parquet from the samples."""
    folder, options = context.directory.iteration(iteration), context.config.oracle
    samples = folder.samples.read()
    oracle = make_oracle(options, context.directory.oracle_cache)
    key = make_key("judge", folder.samples.key(), oracle_key(oracle, options))

    def work() -> Made:
        groups = responses_by_prompt(samples)
        comparisons = [self_comparison(*group) for group in groups.values()]
        make_room(context, oracle)
        matrices = []
        with progress(f"judge iteration {iteration}", len(groups), "prompts") as advance:
            for matrix in oracle.compare(comparisons):
                matrices.append(matrix)
                advance()
        oracle.release()
        cycles = [has_strict_cycle(m) for m in matrices]
        table = pa.table(
            {
                "prompt_id": pa.array(list(groups), pa.int32()),
                "matrix": pa.array([m.ravel().tolist() for m in matrices], pa.list_(pa.float64())),
                "cycle": pa.array(cycles, pa.bool_()),
            }
        )
        return table, {
            "oracle/cycle_rate": float(np.mean(cycles)),
            **oracle.counts(),
            "oracle/decisiveness": float(np.mean([_decisiveness(m) for m in matrices])),
        }

    make(context, "judge", iteration, folder.judgments, key, work)


def make_room(context: Context, oracle: Oracle) -> None:
    """Let go of the policies where the oracle is a model: the two are never held together."""
    if oracle.is_model:
        _forget(context)


@collective
def _forget(context: Context) -> None:
    context.policies.forget()


def responses_by_prompt(samples: pa.Table) -> dict[int, tuple[Messages, list[str]]]:
    """prompt_id → (its conversation, its responses by `sample`), by prompt_id."""
    messages, responses = conversations(samples), samples["response"].to_pylist()
    return {
        number: (messages[rows[0]], [responses[row] for row in rows])
        for number, rows in rows_by_prompt(samples).items()
    }


def read_matrices(context: Context, iteration: int) -> dict[int, np.ndarray]:
    """prompt_id → (K, K) P of its responses by `sample`, by prompt_id."""
    judgments = context.directory.iteration(iteration).judgments.read()
    columns = (judgments[c].to_pylist() for c in ("prompt_id", "matrix"))
    matrices = {}
    for number, flat in sorted(zip(*columns, strict=True)):
        size = math.isqrt(len(flat))
        matrices[number] = np.array(flat).reshape(size, size)
    return matrices


def _decisiveness(matrix: np.ndarray) -> float:
    upper = matrix[np.triu_indices(len(matrix), 1)]
    return float(np.abs(2 * upper - 1).mean())
