"""The `criteria` oracle: a mixture of written-down criteria, each a Bradley–Terry judge.

P(y ≻ y') = Σ_c w_c σ((s_c(y) − s_c(y')) / T_c), after COMAL's eq. 4 (2410.23223v2).
A mixture of *probabilities* under sharp temperatures and unequal weights is intransitive: one
answer is shorter, one stays closer to the question, one says more, and each beats the next.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from comal_fast.config.oracle import CriteriaConfig, Criterion
from comal_fast.data.text import content_words, repetition, words
from comal_fast.oracles.base import Comparison, Oracle

_CLOSERS = "\"'”’)]}*_`»›」』】）》"
_ENDS = ".!?…‽⁇⁈⁉‼。！？．｡।॥؟۔։።፧፨။។៕᙮᠃"  # by script
_BOILERPLATE = re.compile(
    r"\W*(sure|certainly|of course|absolutely|as an ai|i'm sorry|i am sorry|i apologi[sz]e|"
    r"here(?:'s| is| are)|thank you for|great question|i'd be happy|i would be happy)\b",
    re.IGNORECASE,
)


def _answers(prompt: str, response: str, target: int) -> float:
    """Answers the prompt's words: how many the response takes up, of five at most."""
    asked = content_words(prompt)
    taken = len(asked & content_words(response))
    return min(1.0, taken / min(5, len(asked))) if asked else 0.0


def _brief(prompt: str, response: str, target: int) -> float:
    """Says it briefly: the log of how far it runs over the target length, negated."""
    return -math.log(max(1.0, len(words(response)) / target))


def _says_something(prompt: str, response: str, target: int) -> float:
    """Says something: words of content that the prompt did not have, up to half the target."""
    new = len(content_words(response) - content_words(prompt))
    return min(1.0, 2 * new / target)


def _complete(prompt: str, response: str, target: int) -> float:
    """Finishes its sentence: ends with a full stop, a question mark or an exclamation mark."""
    return float(response.rstrip().rstrip(_CLOSERS).endswith(tuple(_ENDS)))


def _varied(prompt: str, response: str, target: int) -> float:
    """Doesn't repeat itself: one minus the share of repeated trigrams."""
    return 1 - repetition(response)


def _direct(prompt: str, response: str, target: int) -> float:
    """Comes to the point: doesn't open with a stock phrase."""
    return float(bool(response.strip()) and not _BOILERPLATE.match(response))


@dataclass(frozen=True)
class Scored:
    """A score of a response, its weight in the mixture and the temperature of its sigmoid."""

    score: Callable[[str, str, int], float]
    weight: float
    temperature: float


CRITERIA: dict[Criterion, Scored] = {
    "complete": Scored(_complete, 0.36, 0.1),
    "answers": Scored(_answers, 0.22, 0.05),
    "brief": Scored(_brief, 0.16, 0.05),
    "says_something": Scored(_says_something, 0.10, 0.05),
    "varied": Scored(_varied, 0.10, 0.03),
    "direct": Scored(_direct, 0.06, 0.1),
}


class CriteriaOracle(Oracle):
    """The mixture in the module's docstring. `target_words`: words up to which one is brief."""

    def __init__(
        self,
        weights: Mapping[Criterion, float] | None = None,
        temperatures: Mapping[Criterion, float] | None = None,
        target_words: int = 40,
    ) -> None:
        raw = weights or {name: c.weight for name, c in CRITERIA.items()}
        total = sum(raw.values())
        self.weights = {name: weight / total for name, weight in raw.items() if weight > 0}
        self.temperatures = {
            name: (temperatures or {}).get(name, CRITERIA[name].temperature)
            for name in self.weights
        }
        self.target_words = target_words

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the mixture's (len(left), len(right)) float64 matrix for each, in order."""
        for item in comparisons:
            mixture = np.zeros((len(item.left), len(item.right)))
            for name, weight in self.weights.items():
                left, right = self._scores(name, item.prompt, item.left, item.right)
                gap = (left[:, None] - right[None, :]) / self.temperatures[name]
                mixture += weight * expit(gap)
            yield mixture

    def fingerprint(self) -> str:
        """A text of the weights, temperatures and target length."""
        return "criteria/1 " + json.dumps(
            [self.weights, self.temperatures, self.target_words], sort_keys=True
        )

    def _scores(self, name: Criterion, prompt: str, *sides: Iterable[str]) -> list[np.ndarray]:
        score = CRITERIA[name].score
        return [np.array([score(prompt, text, self.target_words) for text in s]) for s in sides]


def make(options: CriteriaConfig) -> Oracle:
    """The oracle of these options."""
    return CriteriaOracle(options.weights, options.temperatures, options.target_words)
