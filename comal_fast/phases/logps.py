"""logps: reference and last-iterate log-probs, once per response that is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.distributed.collective import collective
from comal_fast.distributed.group import gather
from comal_fast.model.logps import joint_logps, passed_tokens
from comal_fast.model.packed import PromptResponse
from comal_fast.phases.generate import first_rows
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.ranks import is_main, rank, world
from comal_fast.system.terminal import progress


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/logps.parquet; null for responses that are not trained on."""
    folder, policies = context.directory.iteration(iteration), context.policies
    samples, pairs = folder.samples.read(), folder.pairs.read()
    last, reference = iteration - 1, context.reference_of(iteration)
    key = make_key(
        "logps",
        folder.samples.key(),
        folder.pairs.key(),
        policies.key(last),
        policies.key(reference),
        context.config.training.max_tokens_per_microbatch,
    )

    def work() -> Made:
        columns = (pairs[c].to_pylist() for c in ("chosen", "rejected"))
        used = sorted({row for column in columns for row in column if row is not None})
        sequences = prompt_responses(samples, used)
        logps, seconds = model_logps(context, {last, reference}, sequences, "log-probs")
        firsts = first_rows(samples)
        spread = {
            name: _spread(logps[t], used, firsts)
            for name, t in (("ref", reference), ("last", last))
        }
        table = pa.table({f"{n}_logp": pa.array(x, from_pandas=True) for n, x in spread.items()})
        return table, {
            "comal/kl_to_reference": float(np.nanmean(spread["last"] - spread["ref"])),
            "perf/tokens_per_s": len(logps) * _tokens(context, sequences) / seconds,
        }

    make(context, "logps", iteration, folder.logps, key, work)


def prompt_responses(samples: pa.Table, rows: Sequence[int]) -> list[PromptResponse]:
    """Prompt and response of each of these rows, as token ids."""
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
        models = [context.policies.load(t) for t in together]
        with progress(f"{description} of {names}", tokens, "tokens") as advance:
            values = joint_logps(
                models,
                sequences,
                max_tokens=config.training.max_tokens_per_microbatch,
                attn_implementation=config.model.attn_implementation,
                backend=config.training.backend,
                advance=advance,
                part=(rank(), world()),
            )
            parts = gather(values)
            advance(tokens - advance.done)
        if is_main():
            result |= zip(together, np.sum(parts, axis=0), strict=True)
        seconds += advance.seconds
        del models  # before the next is loaded
    return result, seconds


def _tokens(context: Context, sequences: list[PromptResponse]) -> int:
    """Tokens that go through a model for these log-probs."""
    return passed_tokens(sequences, context.config.training.max_tokens_per_microbatch)


def _spread(values: np.ndarray, rows: list[int], firsts: list[int]) -> np.ndarray:
    """(N,) float64: of each sample the value of its first row, NaN where that is not of `rows`."""
    column = np.full(len(firsts), np.nan)
    column[rows] = values
    return column[firsts]
