"""A conversation through a chat template, once: prompts, and given answers to them.

Templates write every special token themselves, so none is added on top (no second BOS).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from comal_fast.data.conversation import Message, Messages, answered, opened
from comal_fast.data.prompts import Prompt
from comal_fast.errors import InputError

DATE = "2024-07-26"  # what Llama 3's own template falls back to
_CODES = ("-d", "-m", "-H", "-I", "-j", *"aAbBcdDeFHIjmMpSTuUVwWxXyYzZ")
_ANSWER = "comal-fast-answer"  # stands for an answer whose end is looked for


class Refused(Exception):
    """By a chat template: what it says."""


def render(
    tokenizer: Any,
    messages: Messages,
    *,
    tools: str = "",
    template_kwargs: str = "",
    today: str = "",
    **how: Any,
) -> str:
    """What the chat template makes of it. `how`: of `apply_chat_template`.

    Raises Refused for whatever goes wrong in it: a template is a program, and may do anything.
    """
    called = json.loads(tools) if tools else None
    variables = json.loads(template_kwargs) if template_kwargs else {}
    try:
        template = tokenizer.get_chat_template(tools=called)
        text = tokenizer.apply_chat_template(
            [message.to_dict() for message in messages],
            tools=called,
            chat_template=_dated(template, today or DATE),
            tokenize=False,
            **how,
            **variables,
        )
    except Exception as error:
        words = " ".join(str(error).split())
        raise Refused(f"{type(error).__name__}: {words:.200}") from None
    return str(text)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Everything before the response, its beginning included where the prompt has one.

    Raises InputError naming the row.
    """
    return _encode(tokenizer, prompt_text(tokenizer, prompt))


def answer_ids(tokenizer: Any, prompt: Prompt, text: str) -> tuple[list[int], list[int]]:
    """(the prompt's ids, those of the answer `text`, its end-of-turn token last).

    What the template writes for the answered conversation, behind what it writes for the prompt.
    Raises InputError naming the row where that is no continuation of the prompt.
    """
    begins = prompt_text(tokenizer, prompt)
    whole = _text(tokenizer, prompt, answered(prompt.messages, text))
    if not whole.startswith(begins):
        raise InputError(_no_continuation(tokenizer, prompt, begins, whole))
    tail, end = end_of_turn(tokenizer)
    if end is None:  # nothing ends a turn: the end of the text does
        whole = whole.removesuffix(tail)
    before, after = _split(tokenizer, prompt, begins, whole)
    if end is None:
        return before, after + _end_of_text(tokenizer)
    if end not in after:
        token = tokenizer.convert_ids_to_tokens(end)
        raise InputError(f"{prompt.source}: the chat template does not end the answer by {token}")
    return before, after[: len(after) - after[::-1].index(end)]


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """Everything before the response. Raises InputError naming the row."""
    _, beginning = opened(prompt.messages)
    way = "continue_final_message" if beginning else "add_generation_prompt"
    return _text(tokenizer, prompt, prompt.messages, **{way: True})


def end_of_turn(tokenizer: Any) -> tuple[str, int | None]:
    """(what the template writes behind an answer, the token in it that ends the turn).

    None where it writes no such token.
    """
    return _end_of_turn(tokenizer, str(tokenizer.chat_template))


def check_variables(tokenizer: Any, names: Iterable[str], place: str) -> None:
    """Raise InputError for a variable that is not the template's to read."""
    for name in names:
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            raise InputError(f"{place}: the model's chat template has no variable {name}")


@lru_cache(maxsize=8)
def _end_of_turn(tokenizer: Any, template: str) -> tuple[str, int | None]:
    try:
        asked = (Message("user", "?"), Message("assistant", _ANSWER))
        _, found, tail = render(tokenizer, asked).rpartition(_ANSWER)
    except Refused:
        return "", None
    if not found:
        return "", None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in _encode(tokenizer, tail):
        text = tokenizer.decode([token])
        if text.strip():
            return tail, token if token in special else None
    return tail, None


@lru_cache(maxsize=64)
def _dated(template: str, today: str) -> str:
    """The template with `strftime_now` of that day: transformers' own is of the day of the call."""
    if "strftime_now" not in template:
        return template
    day = date.fromisoformat(today)
    parts = [f"replace({f'%{c}'!r}, {day.strftime(f'%{c}')!r})" for c in _CODES]
    macro = (
        f"{{% macro strftime_now(format) %}}{{{{ format | {' | '.join(parts)} }}}}{{% endmacro %}}"
    )
    return f"{macro}\n{template}"  # that line end goes with the block


def _text(tokenizer: Any, prompt: Prompt, messages: Messages, **how: bool) -> str:
    variables = json.loads(prompt.template_kwargs or "{}")
    if taken := sorted(set(variables) & _arguments(type(tokenizer).apply_chat_template)):
        raise InputError(
            f"{prompt.source}, field chat_template_kwargs: {taken[0]} is no variable of a chat "
            "template but set by the trainer; leave it out"
        )
    try:
        return render(
            tokenizer,
            messages,
            tools=prompt.tools,
            template_kwargs=prompt.template_kwargs,
            today=prompt.date,
            **how,
        )
    except Refused as error:
        hint = ""
        if messages[0].role == "system" and "system" in str(error).lower():
            hint = "; leave data.system_prompt out, or write it into the user's first text"
        raise InputError(
            f"{prompt.source}: the model's chat template refuses this conversation ({error}){hint}"
        ) from None


@lru_cache(maxsize=8)
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    named = inspect.signature(function).parameters
    return frozenset({*named, "messages"} - {"documents", "kwargs"})


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _split(tokenizer: Any, prompt: Prompt, begins: str, whole: str) -> tuple[list[int], list[int]]:
    """The ids of `begins`, and those that follow it up to the end of `whole`.

    Where the tokenizer would join letters across the two, the answer is encoded by itself: sampling
    starts behind the prompt's own tokens, too.
    """
    before, both = _encode(tokenizer, begins), _encode(tokenizer, whole)
    if both[: len(before)] == before:
        return before, both[len(before) :]
    after = _encode(tokenizer, whole[len(begins) :])
    if tokenizer.decode(before + after) != tokenizer.decode(both):
        place = _first_difference(before, both)
        raise InputError(
            f"{prompt.source}: with the answer the prompt has other tokens, from "
            f"{tokenizer.decode(before[place:])!r:.60} on; the tokenizer can't keep the two apart"
        )
    return before, after


def _no_continuation(tokenizer: Any, prompt: Prompt, begins: str, whole: str) -> str:
    place = _first_difference(begins, whole)
    switches = [
        name
        for name in ("enable_thinking", "thinking")
        if re.search(rf"\b{name}\b", str(tokenizer.chat_template))
    ]
    hint = f"; data.chat_template_kwargs={{{switches[0]}: false}} may help" if switches else ""
    if prompt.messages[0].role == "system" and begins[place:].startswith(
        prompt.messages[0].content.strip()[:20]
    ):
        hint = "; it drops the system message of an answered conversation, so leave that out"
    return (
        f"{prompt.source}: the chat template writes the prompt otherwise once it is answered: "
        f"{begins[place : place + 30]!r} becomes {whole[place : place + 30]!r}{hint}"
    )


def _first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _end_of_text(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
