"""generate: K samples of the current policy for each of the iteration's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from comal_fast.config.options import what
from comal_fast.context import Context
from comal_fast.data.conversation import Message
from comal_fast.data.tokenize import TokenizedPrompt
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather, wait
from comal_fast.generation.engine import Engine, Response, Sampled, make_engine
from comal_fast.phases.skeleton import Made, check_drawn, make
from comal_fast.store.artefacts import make_key
from comal_fast.store.shards import Shards
from comal_fast.system.ranks import local_rank, node, nodes, rank, world
from comal_fast.system.terminal import console, progress

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


class Cost(NamedTuple):
    """What sampling took, an engine's start included."""

    seconds: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def row(self) -> dict[str, float]:
        """As metrics have it."""
        return {"perf/sampling_seconds": self.seconds, "perf/sampled_tokens": self.tokens}


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

    folder = context.directory.iteration(iteration)
    shards = folder.shards(folder.samples, key)
    check_drawn(context, folder.samples, folder.judgments)

    def work() -> Made:
        count, stream = config.generation.num_generations, f"generate {iteration}"
        name = f"generate π_{last}"
        table, cost = sample_table(context, last, prompts, count, stream, name, shards)
        tokens = sum(map(len, table["response_ids"].to_pylist()))
        return table, {
            "generation/responses": table.num_rows,
            "generation/response_length": tokens / table.num_rows,
            "generation/finished": float(np.mean(table["finished"].to_pylist())),
            **cost.row(),
            "perf/tokens_per_s": cost.tokens_per_s,
        }

    make(context, "generate", iteration, folder.samples, key, work)
    shards.discard()


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
    shards: Shards,
) -> tuple[pa.Table, Cost]:
    """(samples of π_iterate in SAMPLES' columns, what those cost that were sampled now).

    `stream` separates random streams. Responses go into `shards` as they end, and those that are
    there are not sampled again.
    """
    found = {i: [Response(*r) for r in row] for i, row in shards.read().items()}
    left = [i for i in range(len(prompts)) if i not in found]
    if found and left:
        console.print(f"  {description}: the responses to {len(found)} prompts are there already")
        if not context.config.generation.repeatable:
            console.print(
                f"  {context.config.generation.engine} samples the others anew: from the same "
                "policy, but they are not what an undisturbed run would have drawn"
            )
    ids = [prompts[i].ids for i in left]
    sampled, seconds = _sample(context, iterate, ids, left, count, stream, description, shards)
    new = sum(len(r.ids) for responses in sampled.values() for r in responses)
    found |= sampled
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
        for sample, response in enumerate(found[number])
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES), Cost(seconds, new)


@collective
def _sample(
    context: Context,
    iterate: int,
    prompts: list[list[int]],
    numbers: list[int],
    count: int,
    stream: str,
    description: str,
    shards: Shards,
) -> tuple[dict[int, list[Response]], float]:
    """({number of a prompt: its responses}, seconds); each rank samples a share of the prompts."""
    config = context.config
    responses: dict[int, list[Response]] = {}
    if not prompts:
        return responses, 0.0
    with progress(description, len(prompts) * count, "responses") as advance:
        engine = _engine(context, iterate, shards.folder.with_suffix(""))
        part = (node(), nodes()) if engine.apart else (rank(), world())
        mine = prompts if not engine.apart or local_rank() == 0 else []
        try:
            for batch in engine.sample(mine, count, f"{config.seed} {stream}", part):
                named = {numbers[i]: row for i, row in batch.items()}
                responses |= named
                shards.add({i: [[r.ids, r.finished] for r in row] for i, row in named.items()})
                advance(count * len(batch))
        finally:  # whatever went wrong
            shards.write()
        for theirs in gather(responses):
            responses |= theirs
        advance(count * len(responses) - advance.done)
    return responses, advance.seconds


def _engine(context: Context, iterate: int, log: Path) -> Engine:
    """What samples π_iterate. For one that is a process of its own, this one lets go of its GPU."""
    policies = context.policies
    policy = Sampled(
        lambda: policies.load(iterate),
        lambda: policies.stored(iterate),
        context.tokenizer,
        context.config.model,
        context.device,
        log,
    )
    engine = make_engine(context.config.generation, policy)
    if engine.apart:
        policy.stored()
        policies.forget()
        wait()
    return engine
