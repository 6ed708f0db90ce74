"""Every row of a data file as a run would take it: tokens, lengths, and what does not come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comal_fast.config import Config
from comal_fast.config.validate import needs_samples
from comal_fast.data.conversation import Unpaired, prompt_of
from comal_fast.data.pairs import read_pair
from comal_fast.data.prompts import make_prompt
from comal_fast.data.read import rows
from comal_fast.data.template import answer_ids, prompt_ids
from comal_fast.data.tokenize import check_template
from comal_fast.errors import InputError

NAMES = {"min": 0.0, "50%": 0.5, "95%": 0.95, "99%": 0.99, "max": 1.0}
"""The quantiles of a distribution."""
BINS = 20


@dataclass(frozen=True)
class Example:
    """A row: ids of its prompt, and of its `chosen` and `rejected` answers where it has them."""

    source: str
    held_out: bool
    prompt: list[int]
    answers: dict[str, list[int]]
    probability: float | None = None
    """P(chosen ≻ rejected), where the row says."""


@dataclass
class Tally:
    """Counts over all rows, and the first examples."""

    pairs: bool
    """Rows of chosen and rejected answers, not prompts alone."""
    rows: int = 0
    used: int = 0
    held_out: int = 0
    """Of the used ones, those whose `split` says so."""
    duplicates: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Why → how many rows."""
    refused: list[str] = field(default_factory=list)
    """What a run would stop at, a line a row."""
    examples: list[Example] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Tokens of each used row's `prompt`, `chosen`, `rejected`."""

    def to_dict(self, tokenizer: Any) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": "pairs" if self.pairs else "prompts",
            "rows": self.rows,
            "used": self.used,
            "held_out": self.held_out,
            "duplicates": self.duplicates,
            "left_out": dict(self.left_out),
            "refused": self.refused,
            "tokens": {part: distribution(values) for part, values in self.lengths.items()},
            "examples": [_written(tokenizer, example) for example in self.examples],
        }


def distribution(lengths: list[int]) -> dict[str, Any]:
    """Quantiles (min … max), mean, sum, and a histogram: counts in BINS of equal width from 0."""
    values = np.array(lengths)
    counts, edges = np.histogram(values, BINS, (0, values.max() + 1))
    return {
        **{name: float(np.quantile(values, q)) for name, q in NAMES.items()},
        "mean": float(values.mean()),
        "sum": int(values.sum()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def tally(config: Config, tokenizer: Any, shown: int, guess: bool = False) -> Tally:
    """Read `data.pairs` or `data.prompts` to its end; the first `shown` rows used are examples.

    `guess`: the first row tells whether they are pairs. Raises InputError for a file that can't be
    read on, and for one without rows.
    """
    data = config.data
    check_template(tokenizer, data)
    found = None if guess else Tally(data.pairs is not None)
    seen: set[Any] = set()
    for source, row in rows(*named(config), data.split):
        found = found or Tally(row.get("chosen") is not None and row.get("rejected") is not None)
        found.rows += 1
        try:
            example = _example(config, tokenizer, source, row, found.pairs)
            why = _left_out(config, example)
        except Unpaired as error:
            found.left_out[error.kind] += 1
            continue
        except InputError as error:
            found.refused.append(str(error))
            continue
        key = example.probability, *(tuple(ids) for ids in _parts(example).values())
        if why is not None:
            found.left_out[why] += 1
        elif key in seen:
            found.duplicates += 1
        else:
            found.used += 1
            found.held_out += example.held_out
            for part, ids in _parts(example).items():
                found.lengths.setdefault(part, []).append(len(ids))
            if len(found.examples) < shown:
                found.examples.append(example)
        seen.add(key)
    if found is None or not found.rows:
        name, option = named(config)
        raise InputError(f"{option} {name}: no rows in it")
    return found


def named(config: Config) -> tuple[str, str]:
    """What is read, and the option that names it."""
    data = config.data
    return (data.prompts, "data.prompts") if data.pairs is None else (data.pairs, "data.pairs")


def _example(
    config: Config, tokenizer: Any, source: str, row: dict[str, Any], pairs: bool
) -> Example:
    if not pairs:
        prompt = make_prompt(source, row, prompt_of(source, row), config.data)
        return Example(source, prompt.held_out, prompt_ids(tokenizer, prompt), {})
    read = read_pair(source, row, config.data)
    before, chosen = answer_ids(tokenizer, read.prompt, read.chosen)
    _, rejected = answer_ids(tokenizer, read.prompt, read.rejected)
    answers = {"chosen": chosen, "rejected": rejected}
    return Example(source, read.prompt.held_out, before, answers, read.probability)


def _left_out(config: Config, example: Example) -> str | None:
    """Why a run would leave it out; None where it does not. InputError where it would stop."""
    data, length = config.data, len(example.prompt)
    if data.max_prompt_length is not None and length > data.max_prompt_length:
        return f"the prompt has more than data.max_prompt_length={data.max_prompt_length} tokens"
    new = config.generation.max_new_tokens
    if example.answers:
        room = new if data.pairs is not None and needs_samples(config) else 0
        if length + max(room, *map(len, example.answers.values())) <= data.max_length:
            return None
        return f"more than data.max_length={data.max_length} tokens"
    if length + new > data.max_length:
        raise InputError(
            f"{example.source}: the prompt has {length} tokens; with "
            f"generation.max_new_tokens={new} that exceeds data.max_length={data.max_length}"
        )
    return None


def _parts(example: Example) -> dict[str, list[int]]:
    return {"prompt": example.prompt, **example.answers}


def _written(tokenizer: Any, example: Example) -> dict[str, Any]:
    parts = {
        part: {"ids": ids, "text": tokenizer.decode(ids), "trained": part != "prompt"}
        for part, ids in _parts(example).items()
    }
    about = {"source": example.source, "held_out": example.held_out}
    sure = {} if example.probability is None else {"probability": example.probability}
    return {**about, **sure, **parts}


def pieces(tokenizer: Any, ids: list[int]) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether it is a special token) of each token.

    Tokens that hold parts of one character come together.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    start = 0
    for end in range(1, len(ids) + 1):
        if ids[end - 1] in special:
            yield tokenizer.decode(ids[end - 1 : end]), True
            start = end
            continue
        # behind the token before it: some tokenizers drop a text's first blank
        before = ids[max(0, start - 1) : start]
        text = tokenizer.decode(before + ids[start:end])[len(tokenizer.decode(before)) :]
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids):
            yield text, False
            start = end
