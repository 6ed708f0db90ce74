"""logps: reference and last-iterate log-probs, once per response that is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.errors import InputError
from comal_fast.model.logps import joint_logps, passed_tokens
from comal_fast.oracles.checked import short
from comal_fast.phases.generate import first_rows
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.store.shards import Shards
from comal_fast.system.ranks import is_main, rank, world
from comal_fast.system.terminal import progress
from comal_fast.training.history import past
from comal_kernels.packing import PromptResponse


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/logps.parquet; null for responses that are not trained on."""
    folder, policies = context.directory.iteration(iteration), context.policies
    samples, pairs = folder.samples.read(), folder.pairs.read()
    last, reference = iteration - 1, context.reference_of(iteration)
    older = past(context.config, iteration)
    key = make_key(
        "logps",
        folder.samples.key(),
        folder.pairs.key(),
        policies.key(last),
        policies.key(reference),
        context.config.training.max_tokens_per_microbatch,
        *([[w, policies.key(t)] for t, w in older.items()] if len(older) > 1 else []),
    )

    shards = folder.shards(folder.logps, key)

    def work() -> Made:
        columns = (pairs[c].to_pylist() for c in ("chosen", "rejected"))
        used = sorted({row for column in columns for row in column if row is not None})
        sequences = prompt_responses(samples, used)
        iterates = {last, reference, *older}
        logps, speed = model_logps(context, iterates, sequences, "log-probs", shards)
        firsts = first_rows(samples)
        mean = np.sum([weight * logps[t] for t, weight in older.items()], axis=0)
        cached = {"ref": logps[reference], "last": mean}
        if len(older) > 1:  # the mean of iterates is not the policy that was sampled
            cached["policy"] = logps[last]
        spread = {name: _spread(values, used, firsts) for name, values in cached.items()}
        table = pa.table({f"{n}_logp": pa.array(x, from_pandas=True) for n, x in spread.items()})
        return table, {
            "comal/kl_to_reference": float(
                np.nanmean(_spread(logps[last] - logps[reference], used, firsts))
            ),
            "perf/tokens_per_s": speed,
        }

    make(context, "logps", iteration, folder.logps, key, work)
    shards.discard()


def prompt_responses(samples: pa.Table, rows: Sequence[int]) -> list[PromptResponse]:
    """Prompt and response of each of these rows, as token ids."""
    prompts, responses = (samples[c].to_pylist() for c in ("prompt_ids", "response_ids"))
    return [PromptResponse(prompts[row], responses[row]) for row in rows]


def model_logps(
    context: Context,
    iterates: Iterable[int],
    sequences: list[PromptResponse],
    description: str,
    shards: Shards | None = None,
) -> tuple[dict[int, np.ndarray], float]:
    """({iterate: (S,) sums of log-probs under it}, tokens a second of those computed now).

    Policies on one frozen base (LoRA) have one head: a pass over it serves them all. The passes'
    values go into `shards` as they come, and those that are there are not computed again.
    """
    config, wanted = context.config, sorted(set(iterates))
    result: dict[int, np.ndarray] = {}
    seconds, tokens = 0.0, 0.0
    for together in [wanted] if config.model.lora else [[t] for t in wanted]:
        part = None if shards is None else shards.part("-".join(map(str, together)))
        done = {} if part is None else part.read()
        values, took, passed = _model_logps(context, together, sequences, description, part, done)
        result |= zip(together, values, strict=True)
        seconds += took
        tokens += passed
    return result, tokens / max(seconds, 1e-9)


@collective
def _model_logps(
    context: Context,
    together: list[int],
    sequences: list[PromptResponse],
    description: str,
    shards: Shards | None,
    done: dict[int, list[list[float]]],
) -> tuple[np.ndarray, float, float]:
    """((M, S) of M iterates with one head, seconds, tokens); ranks take every so many passes."""
    config, tokens = context.config, _tokens(context, sequences)
    names = " and ".join(f"π_{t}" for t in together)
    models = [context.policies.load(t) for t in together]
    with progress(f"{description} of {names}", tokens, "tokens") as advance:
        try:
            values = joint_logps(
                models,
                sequences,
                max_tokens=config.training.max_tokens_per_microbatch,
                attn_implementation=config.model.attn_implementation,
                backend=config.training.backend,
                advance=advance,
                part=(rank(), world()),
                done=done if is_main() else dict.fromkeys(done, [[0.0]] * len(models)),
                keep=(lambda values: None) if shards is None else shards.add,
            )
        finally:
            if shards is not None:
                shards.write()
        parts = gather(values)
        passed = sum(gather(advance.done))
        advance(tokens - advance.done)
    values = np.sum(parts, axis=0)
    if is_main():
        _check_finite(values, together, sequences, context.tokenizer)
    return values, advance.seconds, passed * len(together)


def _check_finite(
    values: np.ndarray, iterates: list[int], sequences: list[PromptResponse], tokenizer: Any
) -> None:
    """Raise InputError for the first log-prob (M, S) that is no number."""
    for model, number in np.argwhere(~np.isfinite(values))[:1].tolist():
        sequence = sequences[number]
        texts = [tokenizer.decode(ids) for ids in (sequence.prompt_ids, sequence.response_ids)]
        raise InputError(
            f"log-probs: π_{iterates[model]} gives {values[model, number]} for the response "
            f"{short(texts[1])} to {short(texts[0])}; in model.dtype=float32 it may be a number"
        )


def _tokens(context: Context, sequences: list[PromptResponse]) -> int:
    """Tokens that go through a model for these log-probs."""
    return passed_tokens(sequences, context.config.training.max_tokens_per_microbatch)


def _spread(values: np.ndarray, rows: list[int], firsts: list[int]) -> np.ndarray:
    """(N,) float64: of each sample the value of its first row, NaN where that is not of `rows`."""
    column = np.full(len(firsts), np.nan)
    column[rows] = values
    return column[firsts]
