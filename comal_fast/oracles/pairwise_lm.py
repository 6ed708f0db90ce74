"""The `pairwise_lm` oracle: a language model that is asked which of two responses is better.

P(first ≻ second) is the probability of the first one's label among the two labels, at the token
where the answer names one. Both orders are asked and averaged. A prompt with its first response
goes through the model once for all second ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from comal_fast.config.oracle import PairwiseLmConfig
from comal_fast.data.conversation import Message
from comal_fast.errors import InputError
from comal_fast.model.head import head_arguments
from comal_fast.model.judge import load_language_model, template_text
from comal_fast.model.score import last_states
from comal_fast.oracles.asking import Known, Orders, Question
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.judge import Judge
from comal_fast.oracles.template import load_template


class PairwiseLmOracle(Judge, Orders):
    """A language model of these options."""

    options: PairwiseLmConfig

    def __init__(self, options: PairwiseLmConfig) -> None:
        super().__init__(options)
        o = options
        self.template = load_template(o.template, o.labels, o.answer, o.criteria)

    def load(self) -> Any:
        """The causal language model."""
        return load_language_model(self.options)

    @cached_property
    def labels(self) -> tuple[int, int]:
        """The token of each label. Raises InputError where one is not a token of its own."""
        before = self._opening("")
        found = []
        for label in self.template.labels:
            ids = self._opening(label)
            if ids[: len(before)] != before or len(ids) != len(before) + 1:
                pieces = self.tokenizer.convert_ids_to_tokens(ids[len(before) - 1 :])
                raise InputError(
                    f"oracle.labels: {label!r} is not one token after the answer's beginning "
                    f"{self.template.answer!r} (the tokenizer makes {pieces} of its end); give "
                    "labels, or an oracle.answer, where it is"
                )
            found.append(ids[-1])
        if found[0] == found[1]:
            raise InputError(f"oracle.labels: both are the token {found[0]}; give two that differ")
        return found[0], found[1]

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield the (1,) P(first ≻ second) of each question, all together."""
        logits = self.logits(questions)
        self.check_finite(questions, logits, "logit of a label")
        first = expit((logits[:, :1] - logits[:, 1:]) / self.options.temperature)
        yield dict(zip(questions, first, strict=True))

    @torch.inference_mode()
    def logits(self, questions: Sequence[Question]) -> np.ndarray:
        """(n, 2) float64 logits of the labels of the first and of the second response."""
        labels, model = torch.tensor(self.labels), self.model
        groups = groupby(questions, key=lambda q: (q.messages, q.left))
        rows = [[self._ids(q) for q in some] for _, some in groups]
        states = last_states(model, rows, self.options.max_tokens_per_batch)
        result: np.ndarray = _logits(model, states, labels.to(states.device)).cpu().numpy()
        return result

    def asked(self) -> str:
        """A text of the weights, the template and the temperature."""
        return self.named("pairwise_lm/1", *self.template.key, self.options.temperature)

    def _ids(self, question: Question) -> list[int]:
        first, second = question.left[0], question.right[0]
        said = self.template.fill(question.messages, first, second)
        ids = self._tokens(said, self.template.answer)
        self.check_length(ids, question.messages, first, second)
        return ids

    def _opening(self, label: str) -> list[int]:
        """The tokens of a question of nothing, with the answer up to and with the label."""
        return self._tokens("?", self.template.answer + label)

    def _tokens(self, said: str, answer: str) -> list[int]:
        text = template_text(self.tokenizer, (Message("user", said),), add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        return ids


def _logits(model: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """(n, len(tokens)) float64 logits of some words, as the model's own head has them."""
    head = head_arguments(model)
    logits = states.double() @ head["weight"].index_select(0, tokens).double().T
    if head["bias"] is not None:
        logits += head["bias"].index_select(0, tokens).double()
    logits *= head["logit_scale"]
    if (cap := head["softcap"]) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def make(options: PairwiseLmConfig) -> Oracle:
    """The oracle of these options. Raises InputError for what its template or model lacks.

    Its weights are read when it is first asked.
    """
    judge = PairwiseLmOracle(options).checked()
    if "tokenizer" in judge.__dict__:  # it is here already
        judge.labels  # noqa: B018 - refuses labels before anything is sampled
    return judge
