"""The `general_preference` oracle: GPM (arXiv 2410.02197), intransitive by construction.

Each response gets a vector v of even width, and each prompt weights λ of its pairs of entries:
P(y ≻ y') = σ(Σ_k λ_k (v_2k v'_2k+1 − v_2k+1 v'_2k) / temperature). K passes judge K² pairs.

A folder is a decoder with `value_head.weight` (width, H) among its weights and, where λ depends on
the prompt, `prompt_head.weight` (width / 2, H), of which λ is the softmax; without it λ = 1. v is
read at the last token, which is the end of text; λ at the last token of the prompt's messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.special import expit
from torch.nn.functional import linear, normalize

from comal_fast.config.oracle import GeneralPreferenceConfig
from comal_fast.data.conversation import last_user_text
from comal_fast.errors import InputError
from comal_fast.model.judge import OPTION, Headed, load_headed, template_text
from comal_fast.model.score import end_states, split
from comal_fast.oracles.asking import Known, Question, Scores
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.checked import short
from comal_fast.oracles.judge import Judge
from comal_kernels.packing import PromptResponse

_VALUE, _PROMPT = "value_head.weight", "prompt_head.weight"


class GeneralPreferenceOracle(Judge, Scores):
    """A general preference model of these options."""

    options: GeneralPreferenceConfig

    def load(self) -> Headed:
        """The decoder and its heads."""
        headed = load_headed(self.options, [_VALUE], _PROMPT)
        width = len(headed.heads[_VALUE])
        if width % 2:
            raise InputError(f"{OPTION} {self.options.model}: {_VALUE} has odd width {width}")
        if _PROMPT in headed.heads and len(headed.heads[_PROMPT]) != width // 2:
            raise InputError(
                f"{OPTION} {self.options.model}: {_PROMPT} has width "
                f"{len(headed.heads[_PROMPT])}, half of {_VALUE}'s would be {width // 2}"
            )
        return headed

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield (width + width/2,) of each question: v, then λ."""
        answers = self.embed(questions)
        self.check_finite(questions, answers, "vector")
        yield dict(zip(questions, answers, strict=True))

    @torch.inference_mode()
    def embed(self, questions: Sequence[Question]) -> np.ndarray:
        """(n, width + width/2) float64 v and λ of each question's response."""
        model, heads = self.model.model, self.model.heads
        sequences = [self._sequence(question) for question in questions]
        prompts, ends = end_states(model, sequences, self.options.max_tokens_per_batch)
        vectors = linear(ends, heads[_VALUE].to(ends.dtype)).double()
        if self.options.normalize:
            vectors = normalize(vectors, dim=-1)
        weights = torch.ones_like(vectors[:, ::2])
        if _PROMPT in heads:
            weights = linear(prompts, heads[_PROMPT].to(ends.dtype)).double().softmax(-1)
        result: np.ndarray = torch.cat([vectors, weights], 1).cpu().numpy()
        return result

    def preferences(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n, m) float64 P(left ≻ right); the prompt is one, so λ is too."""
        return general_preference(left, right, self.options.temperature)

    def asked(self) -> str:
        """A text of the weights and of what is made of them."""
        return self.named(
            "general_preference/1", self.options.normalize, self.options.special_tokens
        )

    def fingerprint(self) -> str:
        """What is asked, and the temperature."""
        return f"{self.asked()} / {self.options.temperature}"

    def _sequence(self, question: Question) -> PromptResponse:
        """The conversation up to the end of text, its prompt's messages first."""
        messages, response = question.messages, question.left[0]
        prompt = self._ids(template_text(self.tokenizer, messages))
        ids = self._ids(template_text(self.tokenizer, messages, response))
        self.check_length(ids, messages, response)
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise InputError(
                f"{OPTION} {self.options.model}: its chat template writes the messages before a "
                f"response otherwise once the response is there; prompt "
                f"{short(last_user_text(messages))}"
            )
        end = self.tokenizer.eos_token_id
        return split([*ids[:-1], end] if end is not None else ids, len(prompt))

    def _ids(self, text: str) -> list[int]:
        special = self.options.special_tokens
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids


def general_preference(left: np.ndarray, right: np.ndarray, temperature: float) -> np.ndarray:
    """(n, m) float64 P of (n, 3w/2) and (m, 3w/2): vectors of width w, then λ (w/2) of one prompt.

    P(y ≻ y') + P(y' ≻ y) = 1 and P(y ≻ y) = ½ whatever the vectors.
    """
    width = left.shape[1] // 3 * 2
    a, b, weights = left[:, :width], right[:, :width], left[:, width:]
    even, odd = a[:, None, ::2], a[:, None, 1::2]
    areas = even * b[:, 1::2] - odd * b[:, ::2]  # (n, m, w/2), exactly skew-symmetric
    result: np.ndarray = expit((areas * weights[:, None]).sum(-1) / temperature)
    return result


def make(options: GeneralPreferenceConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a model that is not there.

    Its weights are read when it is first asked.
    """
    return GeneralPreferenceOracle(options).checked()
