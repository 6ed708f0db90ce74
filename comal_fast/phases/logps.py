"""logps: reference and last-iterate log-probs, once per response that stands in a pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.artefacts import make_key, read_table, table_key, write_table
from comal_fast.context import Context
from comal_fast.model.logps import response_logps
from comal_fast.model.packed import PromptResponse
from comal_fast.phases import generate, pair
from comal_fast.terminal import progress


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "logps.parquet"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/logps.parquet; null for responses that no pair uses."""
    samples = read_table(generate.path(context, iteration))
    pairs = read_table(pair.path(context, iteration))
    last, reference = iteration - 1, context.reference_of(iteration)
    wanted = make_key(
        "logps",
        table_key(generate.path(context, iteration)),
        table_key(pair.path(context, iteration)),
        context.model_key(last),
        context.model_key(reference),
        context.config.training.max_tokens_per_microbatch,
    )
    artefact = path(context, iteration)
    if table_key(artefact) == wanted:
        return
    metrics = context.metrics("logps", iteration)
    used = sorted({*pairs["chosen"].to_pylist(), *pairs["rejected"].to_pylist()})
    sequences = prompt_responses(samples, used)
    last_logp, seconds = model_logps(context, last, sequences, f"log-probs of π_{last} (last)")
    ref_logp = last_logp
    if reference != last:
        ref_logp, more = model_logps(
            context, reference, sequences, f"log-probs of π_{reference} (reference)"
        )
        seconds += more
    passes = 1 + (reference != last)
    metrics.log(
        comal__kl_to_reference=float(np.mean(last_logp - ref_logp)),
        perf__tokens_per_s=passes * sum(map(len, sequences)) / seconds,
        perf__seconds=seconds,
    )
    columns = {"ref_logp": ref_logp, "last_logp": last_logp}
    table = pa.table({n: _spread(values, used, samples.num_rows) for n, values in columns.items()})
    write_table(artefact, table, wanted)
    context.note("logps", iteration)


def prompt_responses(samples: pa.Table, rows: Sequence[int]) -> list[PromptResponse]:
    """The token ids of these rows."""
    prompts, responses = (samples[c].to_pylist() for c in ("prompt_ids", "response_ids"))
    return [PromptResponse(prompts[row], responses[row]) for row in rows]


def model_logps(
    context: Context, iterate: int, sequences: list[PromptResponse], description: str
) -> tuple[np.ndarray, float]:
    """((S,) sums of log-probs under π_iterate, seconds)."""
    config, model = context.config, context.model(iterate)
    with progress(description, sum(map(len, sequences)), "tokens") as advance:
        values = response_logps(
            model,
            sequences,
            max_tokens=config.training.max_tokens_per_microbatch,
            attn_implementation=config.model.attn_implementation,
            backend=config.training.backend,
            advance=advance,
        )
    return values, advance.seconds


def _spread(values: np.ndarray, rows: list[int], total: int) -> pa.Array:
    column: list[float | None] = [None] * total
    for row, value in zip(rows, values.tolist(), strict=True):
        column[row] = value
    return pa.array(column, pa.float64())
