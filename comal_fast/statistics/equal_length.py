"""The win rate that would be left if both sides were equally long.

The length term of AlpacaEval 2 LC (Dubois et al., arXiv 2404.04475):

    logit P = θ + φ tanh(Δ / std Δ),   Δ = how many tokens longer the responses are,

fitted by cross-entropy, and σ(θ) is the answer. Their term for the difficulty of an instruction is
left out: it needs many models' judgements of the same instructions.

The interval inverts the score test of θ, with φ fitted anew for every θ. Where all responses are
equally long it is Wilson's, so it holds for lopsided win rates as well. The test's variance is
scaled by how much the prompts really vary (the sandwich estimate over that of the model).

The fit never extrapolates: without enough prompts on both sides of Δ = 0 there is no answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import t

from comal_fast.statistics.interval import Array, Interval
from comal_fast.statistics.means import LEAST_PROMPTS, PSEUDO, rate_interval, to_json

LEAST_OVERLAP = 0.3
"""Comparable share below which there is no answer: by simulation, a length effect of another shape
than tanh costs much coverage from there on."""
PRIOR = 1 / 5**2  # φ has a normal prior of scale 5: finite where length decides every prompt
FAR = 30.0  # a logit that is as good as infinite


def length_controlled(wins: Array, extra_tokens: Array) -> dict[str, Any]:
    """Return the win rate at equal length, ready for JSON.

    Args:
        wins: (n,) in [0, 1], one per prompt.
        extra_tokens: (n,) how much longer the responses are than their opponent's.

    Returns:
        `mean` and `ci95` [low, high], both null where there is no answer; `overlap`, the share of
        the prompts that is comparable; `note`, why there is no answer, else null.
    """
    wins, extra = np.asarray(wins, dtype=np.float64), np.asarray(extra_tokens, dtype=np.float64)
    overlap, note = comparable_share(extra), _why_not_comparable(extra)
    found = to_json(equal_length_interval(wins, extra)) if note is None else {}
    return {"mean": None, "ci95": None, **found, "overlap": overlap, "note": note}


def _why_not_comparable(extra_tokens: Array) -> str | None:
    """Return why there is no answer; None where there is one."""
    overlap = comparable_share(extra_tokens)
    if len(extra_tokens) < LEAST_PROMPTS:
        return f"too few prompts ({len(extra_tokens)})"
    return f"not comparable ({overlap:.0%} overlap)" if overlap < LEAST_OVERLAP else None


def comparable_share(extra_tokens: Array) -> float:
    """Return the share of prompts with equal lengths, or with a counterpart of the other sign."""
    longer, shorter = np.mean(extra_tokens > 0), np.mean(extra_tokens < 0)
    return float(2 * min(longer, shorter) + np.mean(extra_tokens == 0))


def equal_length_interval(wins: Array, extra_tokens: Array) -> Interval:
    """Return σ(θ) with its 95 % interval; the prompts must be comparable (3 at least)."""
    spread = float(extra_tokens.std())
    if spread == 0:
        return rate_interval(wins)
    test = _ScoreTest(wins, np.tanh(extra_tokens / spread))
    best = test.estimate()
    bound = float(t.ppf(0.975, len(wins) - 2)) * math.sqrt(test.dispersion(best))

    def end(far: float) -> float:
        """Return the rate between the estimate and `far` at which the test rejects."""
        sign = -math.copysign(1, far)

        def excess(theta: float) -> float:
            return sign * test.statistic(theta) - bound

        # nothing lies beyond an estimate that is infinite, or nothing is rejected
        logit = brentq(excess, far, best) if best != far and excess(far) > 0 else far
        return float(expit(logit))

    low, high = end(-FAR), end(FAR)
    mean = float(expit(best))
    # a logit of ±FAR stands for a rate of 0 or 1
    return Interval(round(mean, 12), round(low, 12), round(high, 12))


def equal_length_values(wins: Array, extra_tokens: Array) -> Array:
    """Return a value per prompt whose mean is the win rate at equal length.

    They are the prompts' influences on θ, carried over to σ(θ) by its derivative: what several
    seeds' win rates share where they hold out the same prompts shows in them.

    Args:
        wins: (n,) in [0, 1], one per prompt.
        extra_tokens: (n,) how much longer the responses are than their opponent's.

    Returns:
        (n,) values; NaN where there is no answer.
    """
    if _why_not_comparable(extra_tokens) is not None:
        return np.full(len(wins), np.nan)
    if (spread := float(extra_tokens.std())) == 0:
        return wins
    test = _ScoreTest(wins, np.tanh(extra_tokens / spread))
    best = test.estimate()
    residuals, weights, information = test.parts(best)
    rate = expit(best)
    influence = residuals * weights / max(information, 1e-9)
    shift = len(wins) * rate * (1 - rate) * (influence - influence.mean())
    return np.asarray(rate + shift)


@dataclass(frozen=True)
class _ScoreTest:
    """The score test of θ, with φ fitted under each θ."""

    wins: Array
    """(n,) in [0, 1]."""
    feature: Array
    """(n,) tanh(Δ / std Δ)."""

    def slope(self, theta: float) -> float:
        """Return φ given θ."""

        def gradient(phi: float) -> float:
            rest = expit(theta + phi * self.feature) - self.wins
            return float(self.feature @ rest) + PRIOR * phi

        most = float(np.abs(self.feature).sum()) / PRIOR  # no gradient is 0 beyond
        return float(brentq(gradient, -most, most))

    def parts(self, theta: float) -> tuple[Array, Array, float]:
        """Return residuals w − p, the weights of the efficient score, and its information."""
        p = expit(theta + self.slope(theta) * self.feature)
        variance = p * (1 - p)
        shared = float(variance @ self.feature) / (float(variance @ self.feature**2) + PRIOR)
        weights = 1 - shared * self.feature
        return self.wins - p, weights, float(variance @ weights)

    def score(self, theta: float) -> float:
        """Return the derivative of the profile likelihood."""
        return float(self.parts(theta)[0].sum())

    def statistic(self, theta: float) -> float:
        """Return the score over its standard error under the model; falls with θ."""
        residuals, _, information = self.parts(theta)
        return float(residuals.sum()) / math.sqrt(max(information, 1e-300))

    def estimate(self) -> float:
        """Return θ; ±FAR where one side wins every prompt."""
        if self.score(-FAR) <= 0:
            return -FAR
        return FAR if self.score(FAR) >= 0 else float(brentq(self.score, -FAR, FAR))

    def dispersion(self, theta: float) -> float:
        """Return the variance of the score over that of draws, guarded as in `rate_bounds`."""
        residuals, weights, information = self.parts(theta)
        if information < 1e-9:
            return 1.0
        n, rate = len(residuals), expit(theta)
        found = float(((residuals * weights) ** 2).sum()) * n / (n - 2)
        unseen = PSEUDO * (rate**2 + (1 - rate) ** 2)
        return float(max(found, min(found + unseen, information))) / information
