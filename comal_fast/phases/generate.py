"""generate: K samples of the current policy for each of the iteration's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.config.options import what
from comal_fast.context import Context
from comal_fast.data.conversation import Message
from comal_fast.data.tokenize import TokenizedPrompt
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.generation.engine import Response, Sampled, make_engine
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.ranks import rank, world
from comal_fast.system.terminal import progress

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])
SAMPLES = pa.schema(
    [
        ("prompt_id", pa.int32()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finished", pa.bool_()),
        ("messages", pa.list_(_MESSAGE)),
    ]
)


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/samples.parquet from π_{iteration−1}."""
    config, last = context.config, iteration - 1
    prompts = context.training_prompts(iteration)
    key = make_key(
        "generate",
        context.policies.key(last),
        [p.ids for p in prompts],
        what(config.generation),
        config.seed,
    )

    def work() -> Made:
        count, stream = config.generation.num_generations, f"generate {iteration}"
        table, seconds = sample_table(context, last, prompts, count, stream, f"generate π_{last}")
        tokens = sum(map(len, table["response_ids"].to_pylist()))
        return table, {
            "generation/responses": table.num_rows,
            "generation/response_length": tokens / table.num_rows,
            "generation/finished": float(np.mean(table["finished"].to_pylist())),
            "perf/tokens_per_s": tokens / seconds,
        }

    make(context, "generate", iteration, context.directory.iteration(iteration).samples, key, work)


def message_row(message: Message) -> dict[str, Any]:
    """A message as `messages` has it."""
    return {**message._asdict(), "extra": message.extra or None}


def first_rows(samples: pa.Table) -> list[int]:
    """Of each row, the first that holds the same response to the same prompt."""
    seen: dict[tuple[int, tuple[int, ...]], int] = {}
    columns = (samples[c].to_pylist() for c in ("prompt_id", "response_ids"))
    return [
        seen.setdefault((number, tuple(response)), row)
        for row, (number, response) in enumerate(zip(*columns, strict=True))
    ]


def rows_by_prompt(samples: pa.Table) -> dict[int, list[int]]:
    """prompt_id → its rows by `sample`: the order of the K×K matrix that judges them."""
    ids, numbers = (samples[c].to_pylist() for c in ("prompt_id", "sample"))
    rows: dict[int, list[int]] = {}
    for row in sorted(range(samples.num_rows), key=lambda row: (ids[row], numbers[row])):
        rows.setdefault(ids[row], []).append(row)
    return rows


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
            "response": prompt.beginning + tokenizer.decode(response.ids, skip_special_tokens=True),
            "prompt_ids": prompt.ids,
            "response_ids": response.ids,
            "finished": response.finished,
            "messages": [message_row(m) for m in prompt.messages],
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
    """({prompt: its responses}, seconds); each rank samples a share of the prompts."""
    config = context.config
    responses: dict[int, list[Response]] = {}
    with progress(description, len(prompts) * count, "responses") as advance:
        policy = Sampled(lambda: context.policies.load(iterate), context.tokenizer)
        engine = make_engine(config.generation, policy)
        part = (rank(), world())
        for batch in engine.sample(prompts, count, f"{config.seed} {stream}", part):
            responses |= batch
            advance(count * len(batch))
        for theirs in gather(responses):
            responses |= theirs
        advance(count * len(responses) - advance.done)
    return responses, advance.seconds
