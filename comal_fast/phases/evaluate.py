"""evaluate: fresh held-out samples of an iterate, judged against every earlier iterate's."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.config import Config
from comal_fast.config.options import what
from comal_fast.config.validate import needs_samples
from comal_fast.context import Context
from comal_fast.data.text import repetition
from comal_fast.errors import InputError
from comal_fast.oracles import Comparison, Oracle, make_oracle, oracle_key
from comal_fast.phases import given
from comal_fast.phases.generate import Cost, sample_table
from comal_fast.phases.judge import make_room, responses_by_prompt
from comal_fast.phases.logps import model_logps, prompt_responses
from comal_fast.phases.skeleton import Made, check_drawn, make
from comal_fast.statistics import (
    Interval,
    length_controlled,
    mean_interval,
    rate_interval,
    tie_share,
    to_interval,
    to_json,
)
from comal_fast.store.artefacts import make_key
from comal_fast.system.terminal import done, progress


def iterates(config: Config, last: int | None = None) -> list[int]:
    """The iterates that get win rates, up to `last`; 0: the initial policy. No oracle, none."""
    if not needs_samples(config):
        return []
    interval, final = config.evaluation.interval, config.algorithm.iterations
    chosen = [t for t in range(final + 1) if t % interval == 0 or t == final]
    return [t for t in chosen if last is None or t <= last]


def run(context: Context, iteration: int) -> None:
    """Write eval_samples.parquet and evaluation.json of π_iteration (0: the initial policy)."""
    start = time.monotonic()
    config, directory, policies = context.config, context.directory, context.policies
    if config.data.pairs is not None and iteration:
        _held_out_pairs(context, iteration)
    if not needs_samples(config):
        return
    before = {t: directory.iteration(t).eval_samples for t in iterates(config) if t < iteration}
    opponents = {t: table.read() for t, table in before.items()}  # says what is missing, first
    oracle = make_oracle(config.oracle, directory.oracle_cache)
    samples, samples_key, cost = _samples(context, iteration)
    _check_prompts(opponents, samples)
    reference = context.reference_of(iteration)
    key = make_key(
        "evaluate",
        samples_key,
        [table.key() for table in before.values()],
        [policies.key(iterate) for iterate in (0, reference, iteration)],
        oracle_key(oracle, config.oracle),
        # no interval depends on the draws any more; older runs are kept by having them here
        [config.evaluation.num_generations, config.evaluation.bootstrap],
        config.training.max_tokens_per_microbatch,
        config.seed,
    )

    def work() -> Made:
        result: dict[str, Any] = {"iterate": iteration, **_text_measures(samples)}
        if opponents:
            make_room(context, oracle)
        result["win_rates"] = _win_rates(context, oracle, iteration, opponents, samples)
        oracle.release()  # before the policies are loaded
        result |= _divergences(context, iteration, reference, samples)
        row = {
            "eval/response_length": result["response_length"]["mean"],
            "eval/repetition": result["repetition"]["mean"],
            "eval/finished": result["finished"],
            "eval/kl_to_initial": result["kl_to_initial"]["mean"],
            "eval/kl_to_reference": result["kl_to_reference"]["mean"],
            **oracle.counts(),
            **cost.row(),
            "perf/seconds": time.monotonic() - start,
        }
        if iteration:
            against = result["win_rates"]["0"]
            low, high = against["ci95"]
            row |= {"eval/win_rate": against["mean"]}
            row |= {"eval/win_rate_low": low, "eval/win_rate_high": high}
            shown = f"{against['mean']:.1%} [{low:.1%}, {high:.1%}]"
            done(f"evaluate π_{iteration}", f"win rate against π_0 {shown}")
        return result, row

    make(context, "evaluate", iteration, directory.iteration(iteration).evaluation, key, work)


def _held_out_pairs(context: Context, iteration: int) -> None:
    """Write pair_evaluation.json of π_iteration."""

    def work() -> Made:
        result = given.held_out(context, iteration)
        mean, (low, high) = result["accuracy"]["mean"], result["accuracy"]["ci95"]
        shown = f"{mean:.1%} [{low:.1%}, {high:.1%}]"
        done(f"evaluate π_{iteration}", f"accuracy on {result['pairs']} held-out pairs {shown}")
        row = {}
        for name in ("accuracy", "margin"):
            found = to_interval(result[name])
            assert found is not None
            row[f"eval/pair_{name}"] = found.mean
            if result[name]["ci95"] is not None:
                row[f"eval/pair_{name}_low"] = found.low
                row[f"eval/pair_{name}_high"] = found.high
        return result, row

    artefact = context.directory.iteration(iteration).pair_evaluation
    make(context, "evaluate", iteration, artefact, given.held_out_key(context, iteration), work)


def _samples(context: Context, iteration: int) -> tuple[pa.Table, str, Cost]:
    """(held-out samples, key, what they cost); made only where they are not there yet."""
    config = context.config
    prompts = context.held_out_prompts()
    key = make_key(
        "eval_samples",
        context.policies.key(iteration),
        [p.ids for p in prompts],
        what(config.generation),
        config.evaluation.num_generations,
        config.seed,
    )
    folder = context.directory.iteration(iteration)
    artefact = folder.eval_samples
    check_drawn(context, artefact, folder.evaluation)
    shards = folder.shards(artefact, key)
    if artefact.holds(key):
        shards.discard()  # of a process that was killed behind the table
        return artefact.read(), key, Cost(0.0, 0)
    table, cost = sample_table(
        context,
        iteration,
        prompts,
        config.evaluation.num_generations,
        f"evaluate {iteration}",
        f"held-out samples of π_{iteration}",
        shards,
    )
    artefact.write(table, key)
    shards.discard()
    return table, key, cost


def _check_prompts(opponents: dict[int, pa.Table], samples: pa.Table) -> None:
    """Raise InputError where an earlier iterate was sampled on other held-out prompts."""

    def prompts(table: pa.Table) -> dict[int, list[int]]:
        numbers, ids = table["prompt_id"].to_pylist(), table["prompt_ids"].to_pylist()
        return dict(zip(numbers, ids, strict=True))

    ours = prompts(samples)
    for iterate, table in opponents.items():
        if prompts(table) != ours:
            raise InputError(
                f"evaluate: π_{iterate} was sampled on other held-out prompts (another seed or "
                f"data.prompts); run `evaluate --iteration {iterate}` first"
            )


def _win_rates(
    context: Context,
    oracle: Oracle,
    iteration: int,
    opponents: dict[int, pa.Table],
    samples: pa.Table,
) -> dict[str, Any]:
    """Against each earlier iterate: mean over prompts of P(its samples ≻ theirs), with interval."""
    ours = responses_by_prompt(samples)
    rates: dict[str, Any] = {}
    if not opponents:
        return rates
    theirs = {earlier: responses_by_prompt(table) for earlier, table in opponents.items()}
    comparisons = [
        Comparison(messages, responses, theirs[earlier][number][1])
        for earlier in opponents
        for number, (messages, responses) in ours.items()
    ]
    matrices = oracle.compare(comparisons)  # one call: an oracle may load a model for each
    with progress(f"judge π_{iteration}", len(comparisons), "prompts") as advance:
        for earlier, opponent in opponents.items():
            wins, ties = [], []
            for matrix in islice(matrices, len(ours)):
                wins.append(matrix.mean())
                ties.append(tie_share(matrix))
                advance()
            extra = prompt_lengths(samples) - prompt_lengths(opponent)
            rates[str(earlier)] = {
                **_with_values(rate_interval(np.array(wins)), np.array(wins)),
                "ties": float(np.mean(ties)),
                "length_controlled": length_controlled(np.array(wins), extra),
            }
    return rates


def prompt_lengths(samples: pa.Table) -> np.ndarray:
    """(prompts,) mean tokens of a prompt's responses, by prompt_id."""
    prompts = np.array(samples["prompt_id"].to_pylist())
    lengths = [len(ids) for ids in samples["response_ids"].to_pylist()]
    means: np.ndarray = np.bincount(prompts, lengths) / np.bincount(prompts)
    return means


def _divergences(
    context: Context, iteration: int, reference: int, samples: pa.Table
) -> dict[str, Any]:
    """KL(π_t ‖ π_0) and KL(π_t ‖ π_ref) in nats per response, by Monte Carlo."""
    sequences = prompt_responses(samples, range(samples.num_rows))
    logps: dict[int, np.ndarray] = {}
    if iteration:
        wanted = {iteration, 0, reference}
        logps, _ = model_logps(context, wanted, sequences, "held-out log-probs")
    prompts = np.array(samples["prompt_id"].to_pylist())
    result = {}
    for name, other in (("kl_to_initial", 0), ("kl_to_reference", reference)):
        gaps = logps[iteration] - logps[other] if iteration else np.zeros(samples.num_rows)
        means = np.bincount(prompts, gaps) / np.bincount(prompts)
        result[name] = _with_values(mean_interval(means), means)
    return result


def _with_values(interval: Interval, values: np.ndarray) -> dict[str, Any]:
    """Return `mean`, `ci95` and the `values` themselves, one per prompt."""
    return {**to_json(interval), "values": values.tolist()}


def _text_measures(samples: pa.Table) -> dict[str, Any]:
    lengths = [len(ids) for ids in samples["response_ids"].to_pylist()]
    repeated = [repetition(text) for text in samples["response"].to_pylist()]
    return {
        "n_prompts": len(set(samples["prompt_id"].to_pylist())),
        "response_length": {"mean": float(np.mean(lengths)), "histogram": lengths},
        "repetition": {"mean": float(np.mean(repeated)), "values": repeated},
        "finished": float(np.mean(samples["finished"].to_pylist())),
    }
