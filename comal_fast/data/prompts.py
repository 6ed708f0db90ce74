"""Prompts of a data file, and which of them are held out or visited when."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from comal_fast.config.schema import DataConfig
from comal_fast.data.conversation import (
    Message,
    Messages,
    canonical,
    last_user_text,
    prompt_of,
)
from comal_fast.data.read import HELD_OUT, rows, split_of
from comal_fast.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """One prompt: what its template is given, and where it came from (file and line)."""

    messages: Messages
    """Before the response; the beginning of one, which it goes on with, comes last."""
    source: str
    split: str | None = None
    tools: str = ""
    """The tools that the model may call, a list as canonical JSON; "" for none."""
    template_kwargs: str = ""
    """More variables of the chat template, an object as canonical JSON; "" for none."""
    date: str = ""
    """The day that the template takes for today, YYYY-MM-DD; "": the default."""

    @property
    def text(self) -> str:
        """What the user said last."""
        return last_user_text(self.messages)

    @property
    def held_out(self) -> bool:
        """Whether its row says that it is not to be trained on."""
        return self.split in HELD_OUT


def load_prompts(data: DataConfig) -> list[Prompt]:
    """All prompts of `data.prompts`, duplicates dropped, in file order.

    TRL's formats: prompt-only or preference rows, plain or conversational, implicit prompts too.
    One of several alike that is held out holds out all. Raises InputError naming file, line and
    field.
    """
    seen: dict[Any, Prompt] = {}
    for source, row in rows(data.prompts, "data.prompts", data.split):
        prompt = make_prompt(source, row, prompt_of(source, row), data)
        key = prompt.messages, prompt.tools, prompt.template_kwargs
        if key not in seen or (prompt.held_out and not seen[key].held_out):
            seen[key] = prompt
    if not seen:
        raise InputError(f"data.prompts {data.prompts}: no prompts in it")
    return list(seen.values())


_NOT_TEXT = ("image", "images", "video", "videos", "audio", "audios")  # of TRL's rows


def make_prompt(source: str, row: dict[str, Any], messages: Messages, data: DataConfig) -> Prompt:
    """The prompt of a row, with what `data:` and the row's own fields say to its template.

    TRL's fields: `tools`, `chat_template_kwargs`. Raises InputError naming line and field.
    """
    if seen := [name for name in _NOT_TEXT if row.get(name)]:
        raise InputError(
            f"{source}, field {seen[0]}: only text is read; leave such rows out, or the field"
        )
    if data.system_prompt is not None and messages[0].role != "system":
        messages = (Message("system", data.system_prompt), *messages)
    own = _json_field(source, row, "chat_template_kwargs", dict)
    kwargs = {**(data.chat_template_kwargs or {}), **(own or {})}
    tools = _json_field(source, row, "tools", list)
    return Prompt(
        messages,
        source,
        split_of(source, row),
        canonical(tools) if tools else "",
        canonical(kwargs) if kwargs else "",
        data.template_date,
    )


def split_prompts(
    prompts: list[Prompt], eval_prompts: int, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out), each in a seeded order.

    Rows that say `"split": "heldout"` (or "test", "validation") are the pool of the held-out ones;
    without any, `eval_prompts` of all are set aside.
    """
    shuffled = sorted(prompts, key=lambda p: (p.messages, p.tools, p.template_kwargs))
    random.Random(f"split {seed}").shuffle(shuffled)
    held = [p for p in shuffled if p.held_out]
    train = [p for p in shuffled if not p.held_out]
    if not held:
        held, train = train[:eval_prompts], train[eval_prompts:]
    if len(held) < eval_prompts or not train:
        raise InputError(
            f"data.eval_prompts: {eval_prompts} held-out prompts asked for, but of {len(prompts)} "
            f"usable prompts {len(held)} can be held out and {len(train)} trained on"
        )
    return train, held[:eval_prompts]


def iteration_slice(train: list[Prompt], per_iteration: int | None, iteration: int) -> list[Prompt]:
    """The prompts of 1-based `iteration`: consecutive slices, around and around."""
    if per_iteration is None or per_iteration >= len(train):
        return train
    start = (iteration - 1) * per_iteration
    return [train[i % len(train)] for i in range(start, start + per_iteration)]


def _json_field(source: str, row: dict[str, Any], field: str, kind: type) -> Any:
    """A list or an object, as it is or as JSON text; None where there is none."""
    value = row.get(field)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = str(value)
    if value is None or value == "" or isinstance(value, kind):
        return value or None
    expected = "an object" if kind is dict else "a list of objects"
    raise InputError(f"{source}, field {field}: expected {expected}, found {value!r:.60}")
