"""Prompts → token ids through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from comal_fast.config.schema import DataConfig
from comal_fast.data.prompts import Messages, Prompt, last_user_text
from comal_fast.errors import InputError


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt with its ids: everything before the response, template included."""

    messages: Messages
    """The whole conversation before the response."""
    ids: list[int]

    @property
    def text(self) -> str:
        """What the user said last."""
        return last_user_text(self.messages)


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, data: DataConfig, max_new_tokens: int
) -> tuple[list[TokenizedPrompt], list[Prompt], int]:
    """(tokenized, the prompts they are, number left out for `data.max_prompt_length`).

    The template writes every special token itself, so none is added on top (no second BOS).
    Raises InputError for a prompt that leaves no room in `data.max_length`, and for a tokenizer
    without a chat template.
    """
    if not tokenizer.chat_template:
        raise InputError("model.name_or_path: its tokenizer has no chat template; use a chat model")
    kept, originals, left_out = [], [], 0
    for prompt in prompts:
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # raise_exception in a template, say
            raise InputError(
                f"{prompt.source}: the model's chat template refuses this conversation "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from None
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if data.max_prompt_length is not None and len(ids) > data.max_prompt_length:
            left_out += 1
            continue
        if len(ids) + max_new_tokens > data.max_length:
            raise InputError(
                f"{prompt.source}: the prompt has {len(ids)} tokens; with "
                f"generation.max_new_tokens={max_new_tokens} that exceeds data.max_length="
                f"{data.max_length}; raise it, or leave such prompts out by data.max_prompt_length"
            )
        kept.append(TokenizedPrompt(prompt.messages, ids))
        originals.append(prompt)
    return kept, originals, left_out
