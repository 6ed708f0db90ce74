"""The `pairwise_classifier` oracle: a cross-encoder over (prompt, first response, second response).

Two kinds. PairRM's (Jiang et al., arXiv 2306.02561): markers before each of the three texts, and a
head over the states of the prompt's marker and of a response's, whose difference is the logit.
Any other sequence classifier: the conversation and both responses as a pair of texts; one logit,
whose σ is P(first ≻ second), or two classes, of which the first is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import linear

from comal_fast.config.oracle import PairwiseClassifierConfig
from comal_fast.errors import InputError
from comal_fast.model.judge import OPTION, Headed, load_classifier, load_headed, read_config
from comal_fast.model.score import Encoded, padded
from comal_fast.oracles.asking import Known, Orders, Question
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.judge import Judge
from comal_fast.oracles.template import conversation_text

_MARKERS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")  # in PairRM's configuration
_HEAD = ("head_layer.1.weight", "head_layer.1.bias", "head_layer.4.weight", "head_layer.4.bias")


class PairwiseClassifierOracle(Judge, Orders):
    """A cross-encoder of these options."""

    options: PairwiseClassifierConfig

    def load(self) -> Any:
        """The sequence classifier; of PairRM's kind, the encoder and its head."""
        if all(hasattr(read_config(self.options), name) for name in _MARKERS):
            return load_headed(self.options, _HEAD, prefix="pretrained_model.")
        return load_classifier(self.options)

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield the (1,) P(first ≻ second) of each question, all together."""
        logits = self.logits(questions)
        self.check_finite(questions, logits, "logit")
        first = expit(logits[:, None] / self.options.temperature)
        yield dict(zip(questions, first, strict=True))

    @torch.inference_mode()
    def logits(self, questions: Sequence[Question]) -> np.ndarray:
        """(n,) float64: of which P(first ≻ second) is the σ."""
        model, most = self.model, self.options.max_tokens_per_batch
        if isinstance(model, Headed):
            marked = [self._marked(q, model.model.config) for q in questions]
            result: np.ndarray = padded(model.model, marked, most, partial(_pairrm, model))
            return result
        rows = [self._pair(q) for q in questions]
        values = padded(model, rows, most, lambda output, _: output.logits.double())
        if values.ndim != 2 or values.shape[1] not in (1, 2):
            raise InputError(
                f"{OPTION} {self.options.model}: {tuple(values.shape[1:])} logits a pair, where "
                "one (its σ) or two (first, second) say which is better"
            )
        return values[:, 0] - (values[:, 1] if values.shape[1] == 2 else 0.0)

    def asked(self) -> str:
        """A text of the weights and the temperature."""
        return self.named("pairwise_classifier/1", self.options.temperature)

    def _marked(self, question: Question, config: Any) -> Encoded:
        """Three texts, each with its marker, as PairRM was trained on them."""
        texts = conversation_text(question.messages), question.left[0], question.right[0]
        ids: list[int] = []
        for name, text in zip(_MARKERS, texts, strict=True):
            marker = self.tokenizer.convert_ids_to_tokens(getattr(config, name))
            ids += self.tokenizer(marker + text)["input_ids"]
        self.check_length(ids, question.messages, *texts[1:])
        return Encoded(ids)

    def _pair(self, question: Question) -> Encoded:
        first, second = question.left[0], question.right[0]
        between = self.tokenizer.sep_token or "\n"
        said = conversation_text(question.messages)
        row = Encoded.of(self.tokenizer(said, f"{first}{between}{second}"))
        self.check_length(row.ids, question.messages, first, second)
        return row


def _pairrm(headed: Headed, output: Any, ids: Tensor) -> Tensor:
    """(n,) float64 score of the first response less that of the second, of a batch."""
    states, config = output.last_hidden_state, headed.model.config
    inner, inner_bias, outer, outer_bias = (headed.heads[name] for name in _HEAD)

    def at(marker: str) -> Tensor:  # its first place in each row
        found = (ids == getattr(config, marker)).int().argmax(1)
        chosen: Tensor = states[torch.arange(len(ids), device=ids.device), found]
        return chosen

    prompt, *responses = (at(marker) for marker in _MARKERS)
    scores = []
    for response in responses:
        both = torch.cat([prompt, response], 1).to(inner.dtype)
        scores.append(linear(torch.tanh(linear(both, inner, inner_bias)), outer, outer_bias))
    return (scores[0] - scores[1]).double().mean(1)


def make(options: PairwiseClassifierConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a model that is not there.

    Its weights are read when it is first asked.
    """
    return PairwiseClassifierOracle(options).checked()
