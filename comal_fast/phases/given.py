"""`data.pairs` in place of sampling and judging: what people judged, as samples and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.context import Context
from comal_fast.data.pairs import TokenizedPair
from comal_fast.errors import InputError
from comal_fast.phases.generate import SAMPLES, message_row
from comal_fast.phases.logps import model_logps
from comal_fast.statistics import DRAW, mean_interval, rate_interval, to_json
from comal_fast.store.artefacts import make_key
from comal_fast.training.items import keeps_draws
from comal_kernels.packing import PromptResponse

Item = tuple[int, int, int | None, float]  # prompt_id, row chosen, row rejected, P


def write_samples(context: Context, iteration: int) -> list[Item]:
    """Write the iteration's samples.parquet, each distinct response a row; returns the pairs.

    Pairs on which P = ½ teach nothing under hard labels, and are left out then.
    """
    pairs = context.training_pairs(iteration)
    table, items = _tables(pairs)
    folder = context.directory.iteration(iteration)
    key = make_key("given", _content(pairs))
    if not folder.samples.holds(key):
        folder.samples.write(table, key)
    draws = keeps_draws(context.config)
    return [item for item in items if draws or item[3] > 0.5 + DRAW]


def pairs_key(context: Context, iteration: int) -> str:
    """The key of what `write_samples` returns."""
    given = _content(context.training_pairs(iteration))
    return make_key("pair", "given", given, keeps_draws(context.config))


def win_rates(pairs: pa.Table, rows: int) -> np.ndarray:
    """(rows,) of each response the mean of P over its pairs; NaN for one that is in none."""
    total, count = np.zeros(rows), np.zeros(rows)
    weights = pairs["count"].to_numpy()
    for column, sign in (("chosen", 1), ("rejected", -1)):
        places = pairs[column].to_numpy()
        wins = pairs["preference"].to_numpy()
        np.add.at(total, places, weights * (wins if sign > 0 else 1 - wins))
        np.add.at(count, places, weights)
    with np.errstate(invalid="ignore"):
        result: np.ndarray = total / count
    return result


def held_out(context: Context, iteration: int) -> dict[str, Any]:
    """Accuracy and margin of π_iteration on the held-out pairs, with 95 % intervals over prompts.

    A margin: log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), nats, the reference the
    initial policy; a pair is right where it is positive, and one with P = ½ is left out.
    """
    table, items = _tables(_decided(context))
    prompts, responses = (table[c].to_pylist() for c in ("prompt_ids", "response_ids"))
    sequences = [PromptResponse(p, r) for p, r in zip(prompts, responses, strict=True)]
    logps, _ = model_logps(context, {0, iteration}, sequences, "held-out pairs' log-probs")
    gained = logps[iteration] - logps[0]
    chosen, rejected = (np.array([item[k] for item in items], dtype=int) for k in (1, 2))
    number = np.array([item[0] for item in items])
    margins = gained[chosen] - gained[rejected]

    def prompt_means(values: np.ndarray) -> np.ndarray:
        means = np.bincount(number, values) / np.maximum(np.bincount(number), 1)
        return np.asarray(means[np.unique(number)])

    right = np.where(margins == 0, 0.5, (margins > 0).astype(float))
    return {
        "iterate": iteration,
        "pairs": len(items),
        "prompts": len(set(number.tolist())),
        "accuracy": to_json(rate_interval(prompt_means(right))),
        "margin": to_json(mean_interval(prompt_means(margins))),
        "chosen_logp_gain": to_json(mean_interval(prompt_means(gained[chosen]))),
        "rejected_logp_gain": to_json(mean_interval(prompt_means(gained[rejected]))),
    }


def check_held_out(context: Context) -> None:
    """Raise InputError where no held-out pair says which response is better."""
    if not _tables(_decided(context))[1]:
        raise InputError(
            "data.eval_prompts: no held-out pair has a better response (all have P = ½, or the "
            "same tokens twice); hold out more"
        )


def held_out_key(context: Context, iteration: int) -> str:
    """The key of `held_out`."""
    config = context.config
    return make_key(
        "held_out_pairs",
        _content(context.held_out_pairs()),
        [context.policies.key(t) for t in (0, iteration)],
        config.training.max_tokens_per_microbatch,
        [config.evaluation.bootstrap, config.seed],  # as older runs have it
    )


def _decided(context: Context) -> list[TokenizedPair]:
    return [p for p in context.held_out_pairs() if p.probability != 0.5]


def _tables(pairs: Sequence[TokenizedPair]) -> tuple[pa.Table, list[Item]]:
    """(samples in SAMPLES' columns, the pairs by rows of it, the likelier response as chosen)."""
    numbers: dict[tuple[int, ...], int] = {}
    rows: list[dict[str, Any]] = []
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    counts: dict[int, int] = {}
    items: list[Item] = []

    def row(pair: TokenizedPair, number: int, text: str, ids: list[int]) -> int:
        key = number, tuple(ids)
        if key not in places:
            sample = counts[number] = counts.get(number, -1) + 1
            places[key] = len(rows)
            rows.append(
                {
                    "prompt_id": number,
                    "sample": sample,
                    "prompt": pair.prompt.text,
                    "response": pair.prompt.beginning + text,
                    "prompt_ids": pair.prompt.ids,
                    "response_ids": ids,
                    "finished": True,
                    "messages": [message_row(m) for m in pair.prompt.messages],
                }
            )
        return places[key]

    for pair in pairs:
        number = numbers.setdefault(tuple(pair.prompt.ids), len(numbers))
        chosen = row(pair, number, pair.chosen, pair.chosen_ids)
        rejected = row(pair, number, pair.rejected, pair.rejected_ids)
        likely = 1.0 if pair.probability is None else pair.probability
        if chosen == rejected:  # texts that the template makes the same
            continue
        if likely < 0.5:
            chosen, rejected, likely = rejected, chosen, 1 - likely
        items.append((number, chosen, rejected, likely))
    return pa.Table.from_pylist(rows, schema=SAMPLES), items


def _content(pairs: Iterable[TokenizedPair]) -> list[Any]:
    return [[p.prompt.ids, p.chosen_ids, p.rejected_ids, p.probability] for p in pairs]
