"""Pairs that people judged: which are taken, as tokens, and which are left out and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comal_fast.config.schema import DataConfig
from comal_fast.data.conversation import Unpaired, opened, pair
from comal_fast.data.prompts import Prompt, make_prompt
from comal_fast.data.read import rows
from comal_fast.data.template import answer_ids
from comal_fast.data.tokenize import TokenizedPrompt, check_template
from comal_fast.errors import InputError


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the chosen and the rejected."""

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float | None = None
    """P(chosen ≻ rejected) where the row says how sure it is; None: it does not."""


@dataclass(frozen=True)
class TokenizedPair:
    """A pair as tokens, each response with its end of turn."""

    prompt: TokenizedPrompt
    chosen: str
    rejected: str
    chosen_ids: list[int]
    rejected_ids: list[int]
    probability: float | None


@dataclass(frozen=True)
class Loaded:
    """Pairs in file order, and how many rows were left out, by reason."""

    pairs: list[PreferencePair]
    left_out: Counter[str]


def load_pairs(data: DataConfig, name: str, option: str = "data.pairs") -> Loaded:
    """Every pair of `name`, the value of `option`; the same row again is left out.

    TRL's preference format, plain and conversational, with a prompt or without. Optional fields:
    `probability`, P(chosen ≻ rejected), or `margin`, a difference of rewards whose σ it is. Rows
    that are no pair (the same text twice, answers to different conversations) are left out too.
    Raises InputError naming file, line and field.
    """
    found: dict[Any, PreferencePair] = {}
    left_out: Counter[str] = Counter()
    for source, row in rows(name, option, data.split):
        try:
            made = read_pair(source, row, data)
        except Unpaired as error:
            left_out[error.kind] += 1
            continue
        key = replace(made, prompt=replace(made.prompt, source="", split=None))
        if key in found:
            left_out["the same as an earlier row"] += 1
            if made.prompt.held_out:
                found[key] = made
            continue
        found[key] = made
    if not found:
        reasons = f" but {_counted(left_out)}" if left_out else ""
        raise InputError(f"{option} {name}: no pairs in it{reasons}")
    return Loaded(list(found.values()), left_out)


def read_pair(source: str, row: dict[str, Any], data: DataConfig) -> PreferencePair:
    """The pair of a row. Raises Unpaired where it is none, InputError where it can't be read."""
    messages, chosen, rejected = pair(source, row)
    prompt = make_prompt(source, row, messages, data)
    return PreferencePair(prompt, chosen, rejected, _probability(source, row))


def tokenize_pairs(
    pairs: Sequence[PreferencePair], tokenizer: Any, data: DataConfig, max_new_tokens: int
) -> tuple[dict[Prompt, list[TokenizedPair]], Counter[str]]:
    """({prompt: its pairs}, number left out by reason); prompts of the same tokens are one.

    Left out is what is longer than `data.max_prompt_length` or `data.max_length`; `max_new_tokens`:
    for which a prompt must leave room too. A prompt is held out where one of its rows says so.
    """
    check_template(tokenizer, data)
    by_ids: dict[tuple[int, ...], tuple[Prompt, TokenizedPrompt]] = {}
    found: dict[tuple[int, ...], list[TokenizedPair]] = {}
    left_out: Counter[str] = Counter()
    for each in pairs:
        prompt, chosen = answer_ids(tokenizer, each.prompt, each.chosen)
        _, rejected = answer_ids(tokenizer, each.prompt, each.rejected)
        if data.max_prompt_length is not None and len(prompt) > data.max_prompt_length:
            left_out[f"more than data.max_prompt_length={data.max_prompt_length} tokens"] += 1
            continue
        longest = max(len(chosen), len(rejected), max_new_tokens)
        if len(prompt) + longest > data.max_length:
            left_out[f"more than data.max_length={data.max_length} tokens"] += 1
            continue
        key = tuple(prompt)
        if key not in by_ids:
            said, beginning = opened(each.prompt.messages)
            by_ids[key] = each.prompt, TokenizedPrompt(said, prompt, beginning)
        elif each.prompt.held_out and not by_ids[key][0].held_out:
            by_ids[key] = replace(by_ids[key][0], split=each.prompt.split), by_ids[key][1]
        found.setdefault(key, []).append(
            TokenizedPair(
                by_ids[key][1], each.chosen, each.rejected, chosen, rejected, each.probability
            )
        )
    return {by_ids[key][0]: some for key, some in found.items()}, left_out


def left_out_line(left_out: Counter[str], total: int) -> str:
    """What is said of rows that were left out."""
    return f"{sum(left_out.values())} of {total} pairs left out: {_counted(left_out)}"


def _counted(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())


def _probability(source: str, row: dict[str, Any]) -> float | None:
    given = [n for n in ("probability", "margin") if row.get(n) not in (None, "")]
    if not given:
        return None
    if len(given) == 2:
        raise InputError(f"{source}: both `probability` and `margin`; give one of the two")
    value = row[given[0]]
    if isinstance(value, str):  # of CSV
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise InputError(
            f"{source}, field {given[0]}: expected a finite number, found {row[given[0]]!r:.40}"
        )
    if given[0] == "margin":
        return 1 / (1 + math.exp(-max(-700.0, float(value))))
    if not 0 <= value <= 1:
        raise InputError(f"{source}, field probability: {value:g} is outside 0 … 1")
    return float(value)
