"""logps: reference and last-iterate log-probs, once per response that is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.artefacts import make_key, read_table, table_key, write_table
from comal_fast.context import Context
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.distributed.ranks import rank, world
from comal_fast.model.logps import passed_tokens, response_logps
from comal_fast.model.packed import PromptResponse
from comal_fast.phases import generate, pair
from comal_fast.terminal import progress


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "logps.parquet"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/logps.parquet; null for responses that are not trained on."""
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
    columns = (pairs[c].to_pylist() for c in ("chosen", "rejected"))
    used = sorted({row for column in columns for row in column if row is not None})
    sequences = prompt_responses(samples, used)
    last_logp, seconds = model_logps(context, last, sequences, f"log-probs of π_{last} (last)")
    ref_logp = last_logp
    if reference != last:
        ref_logp, more = model_logps(
            context, reference, sequences, f"log-probs of π_{reference} (reference)"
        )
        seconds += more
    passes = 1 + (reference != last)
    firsts = generate.first_rows(samples)
    spread = {n: _spread(x, used, firsts) for n, x in (("ref", ref_logp), ("last", last_logp))}
    metrics.log(
        comal__kl_to_reference=float(np.nanmean(spread["last"] - spread["ref"])),
        perf__tokens_per_s=passes * _tokens(context, sequences) / seconds,
        perf__seconds=seconds,
    )
    table = pa.table({f"{n}_logp": pa.array(x, from_pandas=True) for n, x in spread.items()})
    write_table(artefact, table, wanted)
    context.note("logps", iteration)


def prompt_responses(samples: pa.Table, rows: Sequence[int]) -> list[PromptResponse]:
    """The token ids of these rows."""
    prompts, responses = (samples[c].to_pylist() for c in ("prompt_ids", "response_ids"))
    return [PromptResponse(prompts[row], responses[row]) for row in rows]


@collective
def model_logps(
    context: Context, iterate: int, sequences: list[PromptResponse], description: str
) -> tuple[np.ndarray, float]:
    """((S,) sums of log-probs under π_iterate, seconds); ranks take every so many passes each."""
    config, model = context.config, context.model(iterate)
    total = _tokens(context, sequences)
    with progress(description, total, "tokens") as advance:
        values = response_logps(
            model,
            sequences,
            max_tokens=config.training.max_tokens_per_microbatch,
            attn_implementation=config.model.attn_implementation,
            backend=config.training.backend,
            advance=advance,
            share=(rank(), world()),
        )
        values = np.sum(gather(values), axis=0)
        advance(total - advance.done)
    return values, advance.seconds


def _tokens(context: Context, sequences: list[PromptResponse]) -> int:
    """That go through a model for these log-probs."""
    return passed_tokens(sequences, context.config.training.max_tokens_per_microbatch)


def _spread(values: np.ndarray, rows: list[int], firsts: list[int]) -> np.ndarray:
    """(N,) float64: of each sample the value of its first row, NaN where that is not of `rows`."""
    column = np.full(len(firsts), np.nan)
    column[rows] = values
    return column[firsts]
