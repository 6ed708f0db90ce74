"""Data sets of simulations: rates by prompt with a known mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit

Generator = np.random.Generator
Rates = Callable[[Generator, np.ndarray], np.ndarray]
"""Draws one rate per prompt from each prompt's mean rate."""


def draw_hard(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """Return 0/1 outcomes: an oracle that gives verdicts, one sample a prompt."""
    return (generator.random(mean.shape) < mean).astype(float)


def draw_ties(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """Return 0, ½ and 1: an oracle that calls ties, as often as both means allow."""
    tie = np.minimum(mean, 1 - mean)
    draw = generator.random(mean.shape)
    return np.where(draw < tie, 0.5, (draw < mean + tie / 2).astype(float))


def draw_soft(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """Return probabilities that spread over all of [0, 1]: a reward model's."""
    return generator.beta(2 * mean, 2 * (1 - mean))


def draw_alike(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """Return probabilities that are alike for all prompts."""
    return generator.beta(10 * mean, 10 * (1 - mean))


def draw_clustered(generator: Generator, mean: np.ndarray) -> np.ndarray:
    """Return means of 4 × 4 verdicts a prompt, on prompts of their own probability."""
    return generator.binomial(16, generator.beta(3 * mean, 3 * (1 - mean))) / 16


RATES: dict[str, Rates] = {
    "0/1": draw_hard,
    "0, ½, 1": draw_ties,
    "soft": draw_soft,
    "soft, prompts alike": draw_alike,
    "16 verdicts a prompt": draw_clustered,
}


def draw_divergences(generator: Generator, n: int, mean: float) -> np.ndarray:
    """Return (n,) log-ratios of one response a prompt, in nats, whose mean is a KL.

    A prompt's own KL is exponential; its log-ratio is normal with twice the KL as its variance.
    """
    nats = generator.exponential(mean, n)
    return generator.normal(nats, np.sqrt(2 * nats))


def draw_lengths(generator: Generator, n: int, shift: float) -> np.ndarray:
    """Return (n,) differences of lengths: normal, 50 tokens of spread, `shift` spreads longer."""
    return 50 * generator.normal(shift, 1, n)


LENGTH_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "linear": lambda spreads: 0.7 * spreads.clip(-3, 3),
    "steep": lambda spreads: np.tanh(10 / 3 * spreads),
}
"""How an effect of length grows with the difference of lengths, in spreads."""


def win_probability(
    logit: float, effect: float, extra_tokens: np.ndarray, shape: str = "tanh"
) -> np.ndarray:
    """Return P where it is `logit` at equal length and length has an `effect` of this shape."""
    return np.asarray(expit(logit + effect * LENGTH_SHAPES[shape](extra_tokens / 50)))
