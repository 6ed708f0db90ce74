"""The `bradley_terry` oracle: a reward model, P(y ≻ y') = σ((r(y) − r(y')) / temperature).

r is read at the last token of the whole conversation in the model's own chat template. A decoder
reads the prompt once for all responses to it; an encoder, or a model with code of its own, goes
through in padded batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import Linear

from comal_fast.config.oracle import BradleyTerryConfig
from comal_fast.data.conversation import Messages
from comal_fast.errors import InputError
from comal_fast.model.judge import conversation_ids, load_classifier
from comal_fast.model.score import Encoded, can_pack, last_states, padded
from comal_fast.oracles.asking import Known, Question, Scores
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.judge import Judge

Texts = tuple[Messages, Sequence[str]]  # a conversation, and distinct responses to it


class BradleyTerryOracle(Judge, Scores):
    """A reward model of these options."""

    options: BradleyTerryConfig

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
        self.check_finite(questions, rewards, "reward")
        yield {q: rewards[i : i + 1] for i, q in enumerate(questions)}

    def preferences(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n, m) σ of the rewards' differences, (n, 1) and (m, 1)."""
        result: np.ndarray = expit((left - right.T) / self.options.temperature)
        return result

    def rewards(self, asked: Sequence[Texts]) -> np.ndarray:
        """(S,) float64: r of each response, conversation by conversation."""
        model, most = self.model, self.options.max_tokens_per_batch
        pair = not self.tokenizer.chat_template
        head = getattr(model, "score", None)
        if self.options.score == "logits" and isinstance(head, Linear) and can_pack(model):
            groups = [self._conversations(*texts) for texts in asked]
            with torch.inference_mode():
                return self._one(head(last_states(model, groups, most)).double().cpu().numpy())
        rows = [
            row
            for messages, responses in asked
            for row in (
                self._pairs(messages, responses)
                if pair
                else map(Encoded, self._conversations(messages, responses))
            )
        ]
        return self._one(padded(model, rows, most, self._output))

    def asked(self) -> str:
        """A text of the weights and of what is made of them."""
        return self.named("bradley_terry/1", self.options.score)

    def fingerprint(self) -> str:
        """What is asked, and the temperature."""
        return f"{self.asked()} / {self.options.temperature}"

    def _conversations(self, messages: Messages, responses: Sequence[str]) -> list[list[int]]:
        """Token ids up to the last that is no padding, where transformers reads the reward."""
        pad = self.model.config.pad_token_id
        rows = []
        for response in responses:
            ids = conversation_ids(self.tokenizer, messages, response)
            self.check_length(ids, messages, response)
            end = next((i for i in range(len(ids), 0, -1) if ids[i - 1] != pad), 0)
            rows.append(ids[:end] or ids[:1])
        return rows

    def _pairs(self, messages: Messages, responses: Sequence[str]) -> list[Encoded]:
        """(all that was said, response) as a pair of texts: encoders without a chat template."""
        said = "\n".join(m.said for m in messages)
        rows = [Encoded.of(self.tokenizer(said, response)) for response in responses]
        for row, response in zip(rows, responses, strict=True):
            self.check_length(row.ids, messages, response)
        return rows

    def _output(self, output: Any, _: Tensor) -> Tensor:
        value = getattr(output, self.options.score, None)
        if not isinstance(value, Tensor):
            names = ", ".join(k for k, v in output.items() if isinstance(v, Tensor))
            raise InputError(
                f"oracle.score: {self.options.model} has no output {self.options.score}; "
                f"it has {names}"
            )
        return value.double()

    def _one(self, value: np.ndarray) -> np.ndarray:
        """(n, 1) or (n,) → (n,)."""
        if value.ndim == 2 and value.shape[1] == 1:
            value = value[:, 0]
        if value.ndim != 1:
            raise InputError(
                f"oracle.score: {self.options.score} of {self.options.model} has shape "
                f"{tuple(value.shape)}, where a reward is one number a conversation"
            )
        return value


def make(options: BradleyTerryConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a model that is not there.

    Its weights are read when it is first asked.
    """
    return BradleyTerryOracle(options).checked()
