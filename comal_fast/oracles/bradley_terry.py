"""The `bradley_terry` oracle: a reward model, P(y ≻ y') = σ((r(y) − r(y')) / temperature).

r is read at the last token of the whole conversation in the model's own chat template. A decoder
reads the prompt once for all responses to it; an encoder, or a model with code of its own, goes
through in padded batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from comal_fast.config.oracle import BradleyTerryConfig
from comal_fast.data.prompts import Messages, last_user_text
from comal_fast.errors import InputError
from comal_fast.model.classifier import (
    OPTION,
    conversation_ids,
    is_folder,
    load_classifier,
    load_reader,
    source_key,
)
from comal_fast.model.score import can_pack, last_states
from comal_fast.oracles.asking import Known, Question, Scores
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.checked import short
from comal_fast.oracles.judge import Judge

Texts = tuple[Messages, Sequence[str]]  # a conversation, and distinct responses to it


class BradleyTerryOracle(Judge, Scores):
    """A reward model of these options."""

    options: BradleyTerryConfig

    @cached_property
    def tokenizer(self) -> Any:
        """The reward model's own."""
        return load_reader(self.options)

    def load(self) -> Any:
        """The sequence classifier."""
        return load_classifier(self.options)

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield the (1,) reward of each question's response, all together.

        Raises InputError for a conversation longer than `max_length`, and for a reward that is not
        finite.
        """
        groups = groupby(questions, key=lambda q: q.messages)
        asked = [(messages, [q.left[0] for q in some]) for messages, some in groups]
        rewards = self.rewards(asked)
        for question, reward in zip(questions, rewards, strict=True):
            if not np.isfinite(reward):
                raise InputError(
                    f"{OPTION} {self.options.model}: its reward is {reward:g} for the prompt "
                    f"{short(last_user_text(question.messages))}, response "
                    f"{short(question.left[0])}"
                )
        yield {q: rewards[i : i + 1] for i, q in enumerate(questions)}

    def preferences(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n, m) σ of the rewards' differences, (n, 1) and (m, 1)."""
        result: np.ndarray = expit((left - right.T) / self.options.temperature)
        return result

    def rewards(self, asked: Sequence[Texts]) -> np.ndarray:
        """(S,) float64: r of each response, conversation by conversation."""
        model = self.model
        pair = not self.tokenizer.chat_template
        if self.options.score == "logits" and can_pack(model):
            if pair:
                raise InputError(
                    f"{OPTION} {self.options.model}: its tokenizer has no chat template"
                )
            groups = [self._conversations(*texts) for texts in asked]
            head = model.score
            parts = []
            for some in _chunks(groups, self.options.batch_size):
                with torch.inference_mode():
                    parts.append(self._one(head(last_states(model, some))))
            return np.concatenate(parts)
        read = self._pairs if pair else self._conversations
        rows = [ids for texts in asked for ids in read(*texts)]
        size = self.options.batch_size if model.config.pad_token_id is not None else 1
        batches = (rows[i : i + size] for i in range(0, len(rows), size))
        return np.concatenate([self._padded(model, batch) for batch in batches])

    def asked(self) -> str:
        """A text of the weights and of what is made of them.

        `batch_size` is no part of it: it moves a reward by rounding alone.
        """
        o = self.options
        made = [self._source, o.dtype, o.quantization, o.score]
        return "bradley_terry/1 " + json.dumps(made)

    def fingerprint(self) -> str:
        """What is asked, and the temperature."""
        return f"{self.asked()} / {self.options.temperature}"

    @cached_property
    def _source(self) -> Any:
        return source_key(self.options)

    def _conversations(self, messages: Messages, responses: Sequence[str]) -> list[list[int]]:
        """Token ids up to the last that is no padding, where transformers reads the reward."""
        pad = self.model.config.pad_token_id
        rows = []
        for response in responses:
            ids = conversation_ids(self.tokenizer, messages, response)
            self._check_length(ids, messages, response)
            end = next((i for i in range(len(ids), 0, -1) if ids[i - 1] != pad), 0)
            rows.append(ids[:end] or ids[:1])
        return rows

    def _pairs(self, messages: Messages, responses: Sequence[str]) -> list[list[int]]:
        """(all that was said, response) as a pair of texts: encoders without a chat template."""
        said = "\n".join(content for _, content in messages)
        rows = [self.tokenizer(said, response)["input_ids"] for response in responses]
        for ids, response in zip(rows, responses, strict=True):
            self._check_length(ids, messages, response)
        return rows

    @torch.inference_mode()
    def _padded(self, model: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest, pad = max(map(len, rows)), model.config.pad_token_id
        ids = torch.full((len(rows), longest), pad if pad is not None else 0)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        value = getattr(output, self.options.score, None)
        if not isinstance(value, Tensor):
            names = ", ".join(k for k, v in output.items() if isinstance(v, Tensor))
            raise InputError(
                f"oracle.score: {self.options.model} has no output {self.options.score}; "
                f"it has {names}"
            )
        return self._one(value)

    def _one(self, value: Tensor) -> np.ndarray:
        """(n, 1) or (n,) → (n,) float64."""
        if value.ndim == 2 and value.shape[1] == 1:
            value = value[:, 0]
        if value.ndim != 1:
            raise InputError(
                f"oracle.score: {self.options.score} of {self.options.model} has shape "
                f"{tuple(value.shape)}, where a reward is one number a conversation"
            )
        result: np.ndarray = value.double().cpu().numpy()
        return result

    def _check_length(self, ids: Sequence[int], messages: Messages, response: str) -> None:
        limit = self.options.max_length
        if len(ids) > limit:
            raise InputError(
                f"oracle.max_length: {limit} is less than the {len(ids)} tokens of the prompt "
                f"{short(last_user_text(messages))} with the response {short(response)}"
            )


def _chunks(groups: Sequence[Sequence[list[int]]], size: int) -> Iterator[list[list[list[int]]]]:
    """The groups, in passes of at most `size` sequences; a group of more is parted."""
    some: list[list[list[int]]] = []
    for group in groups:
        for start in range(0, len(group), size):
            piece = list(group[start : start + size])
            if some and sum(map(len, some)) + len(piece) > size:
                yield some
                some = []
            some.append(piece)
    if some:
        yield some


def make(options: BradleyTerryConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a model that is not there or no reward's.

    Its weights are read when it is first asked.
    """
    oracle = BradleyTerryOracle(options)
    if is_folder(options):
        oracle.tokenizer  # noqa: B018 - says what it lacks before anything is sampled
    return oracle
