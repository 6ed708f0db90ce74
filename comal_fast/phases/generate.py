"""generate: K samples of the current policy for each of the iteration's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.data.tokenize import TokenizedPrompt
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.generation.transformers import Response, sample_responses
from comal_fast.store.artefacts import make_key, table_key, write_table
from comal_fast.system.ranks import rank, world
from comal_fast.system.terminal import progress

SAMPLES = pa.schema(
    [
        ("prompt_id", pa.int32()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finished", pa.bool_()),
    ]
)


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "samples.parquet"


def key(context: Context, iteration: int) -> str:
    """Weights, prompts, sampling options and seed."""
    prompts = context.training_prompts(iteration)
    config = context.config
    return make_key(
        "generate",
        context.model_key(iteration - 1),
        [p.ids for p in prompts],
        asdict(config.generation),
        config.seed,
    )


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/samples.parquet from π_{iteration−1}."""
    artefact, wanted = path(context, iteration), key(context, iteration)
    if table_key(artefact) == wanted:
        return
    metrics = context.metrics("generate", iteration)
    prompts = context.training_prompts(iteration)
    count = context.config.generation.num_generations
    table, seconds = sample_table(
        context,
        iteration - 1,
        prompts,
        count,
        f"generate {iteration}",
        f"generate π_{iteration - 1}",
    )
    tokens = sum(map(len, table["response_ids"].to_pylist()))
    metrics.log(
        generation__responses=table.num_rows,
        generation__response_length=tokens / table.num_rows,
        generation__finished=float(np.mean(table["finished"].to_pylist())),
        perf__tokens_per_s=tokens / seconds,
        perf__seconds=seconds,
    )
    write_table(artefact, table, wanted)
    context.note("generate", iteration)


def first_rows(samples: pa.Table) -> list[int]:
    """Of each row, the first that holds the same response to the same prompt."""
    seen: dict[tuple[int, tuple[int, ...]], int] = {}
    columns = (samples[c].to_pylist() for c in ("prompt_id", "response_ids"))
    return [
        seen.setdefault((number, tuple(response)), row)
        for row, (number, response) in enumerate(zip(*columns, strict=True))
    ]


def sample_table(
    context: Context,
    iterate: int,
    prompts: Sequence[TokenizedPrompt],
    count: int,
    stream: str,
    description: str,
) -> tuple[pa.Table, float]:
    """(samples of π_iterate in SAMPLES' columns, seconds). `stream` separates random streams."""
    ids = [p.ids for p in prompts]
    responses, seconds = _sample(context, iterate, ids, count, stream, description)
    tokenizer = context.tokenizer
    rows = [
        {
            "prompt_id": number,
            "sample": sample,
            "prompt": prompt.text,
            "response": tokenizer.decode(response.ids, skip_special_tokens=True),
            "prompt_ids": prompt.ids,
            "response_ids": response.ids,
            "finished": response.finished,
        }
        for number, prompt in enumerate(prompts)
        for sample, response in enumerate(responses[number])
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES), seconds


@collective
def _sample(
    context: Context,
    iterate: int,
    prompts: list[list[int]],
    count: int,
    stream: str,
    description: str,
) -> tuple[dict[int, list[Response]], float]:
    """({prompt: its responses}, seconds); ranks take every so many batches each."""
    config = context.config
    responses: dict[int, list[Response]] = {}
    with progress(description, len(prompts) * count, "responses") as advance:
        for batch in sample_responses(
            context.model(iterate),
            context.tokenizer,
            prompts,
            count,
            config.generation,
            f"{config.seed} {stream}",
            share=(rank(), world()),
        ):
            responses |= batch
            advance(count * len(batch))
        for theirs in gather(responses):
            responses |= theirs
        advance(count * len(responses) - advance.done)
    return responses, advance.seconds
