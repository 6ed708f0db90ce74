"""The `bradley_terry` oracle: a reward model, P(y ≻ y') = σ((r(y) − r(y')) / temperature).

r is read at the last token of the whole conversation in the model's own chat template. A decoder
reads the prompt once for all responses to it; an encoder, or a model with code of its own, goes
through in padded batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from comal_fast.config.oracle import BradleyTerryConfig
from comal_fast.data.prompts import Messages
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
from comal_fast.oracles.base import Comparison, Oracle
from comal_fast.oracles.checked import short

Texts = tuple[Messages, Sequence[str]]  # a conversation, and distinct responses to it


class BradleyTerryOracle(Oracle):
    """A reward model, loaded when it is first asked and held until `release`."""

    def __init__(self, options: BradleyTerryConfig) -> None:
        self.options = options
        self._model: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The reward model's own."""
        return load_reader(self.options)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the (len(left), len(right)) float64 matrix for each, in order.

        Raises InputError for a conversation longer than `max_length`, and for a reward that is not
        finite.
        """
        for window in self._windows(comparisons):
            asked = [(c.messages, list(dict.fromkeys([*c.left, *c.right]))) for c in window]
            rewards = iter(self.rewards(asked).tolist())
            for item, (_, texts) in zip(window, asked, strict=True):
                of = {text: next(rewards) for text in texts}
                self._check(item, of)
                left, right = (np.array([of[t] for t in s]) for s in (item.left, item.right))
                yield expit((left[:, None] - right[None, :]) / self.options.temperature)

    def rewards(self, asked: Sequence[Texts]) -> np.ndarray:
        """(S,) float64: r of each response, conversation by conversation."""
        if self._model is None:
            self._model = load_classifier(self.options)
        model = self._model
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

    def fingerprint(self) -> str:
        """A text of the weights and of what is made of them.

        `batch_size` is no part of it: it moves a reward by rounding alone.
        """
        o = self.options
        made = [source_key(o), o.dtype, o.quantization, o.score, o.temperature]
        return "bradley_terry/1 " + json.dumps(made)

    def release(self) -> None:
        """Let go of the model."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _windows(self, comparisons: Iterable[Comparison]) -> Iterator[list[Comparison]]:
        """Comparisons whose responses fill a pass."""
        window: list[Comparison] = []
        size = 0
        for item in comparisons:
            more = len({*item.left, *item.right})
            if window and size + more > self.options.batch_size:
                yield window
                window, size = [], 0
            window.append(item)
            size += more
        if window:
            yield window

    def _conversations(self, messages: Messages, responses: Sequence[str]) -> list[list[int]]:
        """Token ids up to the last that is no padding, where transformers reads the reward."""
        pad = self._model.config.pad_token_id
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
            prompt = Comparison(messages, [], []).prompt
            raise InputError(
                f"oracle.max_length: {limit} is less than the {len(ids)} tokens of the prompt "
                f"{short(prompt)} with the response {short(response)}"
            )

    def _check(self, item: Comparison, of: dict[str, float]) -> None:
        for text, reward in of.items():
            if not np.isfinite(reward):
                raise InputError(
                    f"{OPTION} {self.options.model}: its reward is {reward:g} for the prompt "
                    f"{short(item.prompt)}, response {short(text)}"
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
