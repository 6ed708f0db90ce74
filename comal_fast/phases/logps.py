"""logps: reference and last-iterate log-probs, once per response that is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.model.logps import joint_logps, passed_tokens
from comal_fast.model.packed import PromptResponse
from comal_fast.phases import generate, pair
from comal_fast.store.artefacts import make_key, read_table, table_key, write_table
from comal_fast.system.ranks import is_main, rank, world
from comal_fast.system.terminal import progress


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
    logps, seconds = model_logps(context, {last, reference}, sequences, "log-probs")
    firsts = generate.first_rows(samples)
    policies = {"ref": reference, "last": last}
    spread = {name: _spread(logps[t], used, firsts) for name, t in policies.items()}
    metrics.log(
        comal__kl_to_reference=float(np.nanmean(spread["last"] - spread["ref"])),
        perf__tokens_per_s=len(logps) * _tokens(context, sequences) / seconds,
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
    context: Context, iterates: Iterable[int], sequences: list[PromptResponse], description: str
) -> tuple[dict[int, np.ndarray], float]:
    """({iterate: (S,) sums of log-probs under it}, seconds); ranks take every so many passes each.

    Policies on one frozen base (LoRA) have one head: a pass over it serves them all.
    """
    config, wanted = context.config, sorted(set(iterates))
    result: dict[int, np.ndarray] = {}
    seconds = 0.0
    tokens = _tokens(context, sequences)
    for together in [wanted] if config.model.lora else [[t] for t in wanted]:
        names = " and ".join(f"π_{t}" for t in together)
        models = [context.model(t) for t in together]
        with progress(f"{description} of {names}", tokens, "tokens") as advance:
            values = joint_logps(
                models,
                sequences,
                max_tokens=config.training.max_tokens_per_microbatch,
                attn_implementation=config.model.attn_implementation,
                backend=config.training.backend,
                advance=advance,
                share=(rank(), world()),
            )
            parts = gather(values)
            advance(tokens - advance.done)
        if is_main():
            result |= zip(together, np.sum(parts, axis=0), strict=True)
        seconds += advance.seconds
        del models  # before the next is loaded
    return result, seconds


def _tokens(context: Context, sequences: list[PromptResponse]) -> int:
    """That go through a model for these log-probs."""
    return passed_tokens(sequences, context.config.training.max_tokens_per_microbatch)


def _spread(values: np.ndarray, rows: list[int], firsts: list[int]) -> np.ndarray:
    """(N,) float64: of each sample the value of its first row, NaN where that is not of `rows`."""
    column = np.full(len(firsts), np.nan)
    column[rows] = values
    return column[firsts]
