"""Prompts → token ids through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from comal_fast.config.schema import DataConfig
from comal_fast.data.conversation import Message, Messages, last_user_text, opened
from comal_fast.data.prompts import Prompt
from comal_fast.data.template import Refused, check_variables, prompt_ids, render
from comal_fast.errors import InputError


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt with its ids: everything before the response, template included."""

    messages: Messages
    """The whole conversation before the answer."""
    ids: list[int]
    beginning: str = ""
    """Of the answer, where the prompt has it; the last of the ids."""

    @property
    def text(self) -> str:
        """What the user said last."""
        return last_user_text(self.messages)


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, data: DataConfig, max_new_tokens: int
) -> tuple[list[TokenizedPrompt], list[Prompt], int]:
    """(tokenized, the prompts they are, number left out for `data.max_prompt_length`).

    Prompts of which the template makes the same tokens are one, held out where one of them is.
    Raises InputError for a prompt that leaves no room in `data.max_length`, and for a tokenizer
    without a chat template.
    """
    check_template(tokenizer, data)
    kept: dict[tuple[int, ...], tuple[TokenizedPrompt, Prompt]] = {}
    left_out = 0
    for prompt in prompts:
        ids = prompt_ids(tokenizer, prompt)
        if data.max_prompt_length is not None and len(ids) > data.max_prompt_length:
            left_out += 1
            continue
        if len(ids) + max_new_tokens > data.max_length:
            raise InputError(
                f"{prompt.source}: the prompt has {len(ids)} tokens; with "
                f"generation.max_new_tokens={max_new_tokens} that exceeds data.max_length="
                f"{data.max_length}; raise it, or leave such prompts out by data.max_prompt_length"
            )
        before = kept.get(tuple(ids))
        if before is None:
            said, beginning = opened(prompt.messages)
            kept[tuple(ids)] = TokenizedPrompt(said, ids, beginning), prompt
        elif prompt.held_out and not before[1].held_out:
            kept[tuple(ids)] = before[0], replace(before[1], split=prompt.split)
    return [t for t, _ in kept.values()], [p for _, p in kept.values()], left_out


def check_template(tokenizer: Any, data: DataConfig) -> None:
    """Raise InputError for a tokenizer without a chat template, or options that it ignores."""
    if not tokenizer.chat_template:
        raise InputError("model.name_or_path: its tokenizer has no chat template; use a chat model")
    check_variables(tokenizer, data.chat_template_kwargs or {}, "data.chat_template_kwargs")
    if system := (data.system_prompt or "").strip():
        try:
            text = render(tokenizer, (Message("system", system), Message("user", "?")))
        except Refused:  # said with the line of the first prompt that it refuses
            return
        if system not in text:
            raise InputError("data.system_prompt: the model's chat template does not write it")
