"""Intervals: of means over prompts by bootstrap, of win rates at equal length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

CHUNK = 1000  # resamples at a time: memory stays small at any n
RIDGE = 1e-4  # keeps the length regression finite where one side wins every prompt

DRAW = 1e-9  # a comparison within this of ½ is a tie
LENGTH_RESAMPLES = 1000  # of `length_controlled`: a regression each


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; NaN where a number is missing."""

    mean: float
    low: float
    high: float

    def complement(self) -> Interval:
        """The other side's win rate."""
        return Interval(1 - self.mean, 1 - self.high, 1 - self.low)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return self.low > value or self.high < value


NOWHERE = Interval(math.nan, math.nan, math.nan)


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is not a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan


def to_interval(value: Any) -> Interval | None:
    """{`mean`, `ci95` [low, high]} as an Interval; None without a finite mean."""
    if not isinstance(value, dict) or not math.isfinite(mean := number(value.get("mean"))):
        return None
    ends = value.get("ci95")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return Interval(mean, number(low), number(high))


def tie_share(matrix: np.ndarray) -> float:
    """Share of the comparisons at P = ½."""
    return float(np.mean(np.abs(matrix - 0.5) <= DRAW))


def wilson(share: Array, n: Array) -> tuple[Array, Array]:
    """(low, high) of 95 % Wilson intervals of shares of n (Wilson 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def bootstrap_mean(values: Array, resamples: int, seed: int) -> dict[str, Any]:
    """`mean` and `ci95` [low, high] (percentile bootstrap) of (n,) values, one per prompt."""
    values = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(values, resamples, seed)
    return {"mean": float(values.mean()), "ci95": [low, high]}


def bootstrap_interval(
    values: Array, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of (n,) values at this level: percentile bootstrap."""
    means = bootstrap_means(np.asarray(values, dtype=np.float64)[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(values: Array, resamples: int, seed: int) -> Array:
    """(resamples, k) means of (n, k) values, all columns over the same resampled prompts.

    So differences of columns are paired, and anything computed from a row has its interval.
    """
    return np.concatenate([w @ values for w in bootstrap_weights(len(values), resamples, seed)])


def crossed_interval(
    values: Array, resamples: int, seed: int, minus: Array | None = None
) -> Interval:
    """Mean of (seeds, prompts) values, with a 95 % interval over seeds and prompts drawn anew.

    `minus`: (seeds', prompts) of another run on the same prompts, of which the difference is taken:
    paired by prompt, each run's seeds drawn apart (Owen's pigeonhole bootstrap, 2007).
    """
    runs = [values] if minus is None else [values, minus]
    means = np.zeros(resamples)
    prompts = np.concatenate(list(bootstrap_weights(values.shape[1], resamples, seed)))
    for number, (sign, run) in enumerate(zip((1, -1), runs, strict=False), 1):
        seeds = np.concatenate(list(bootstrap_weights(len(run), resamples, seed + number)))
        means += sign * ((prompts @ run.T) * seeds).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = values.mean() - (0.0 if minus is None else minus.mean())
    return Interval(float(mean), float(low), float(high))


def bootstrap_weights(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """(≤ 1000, n) weights of the prompts in each resample, rows summing to 1."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        picks = generator.integers(0, n, (rows, n))
        flat = (picks + n * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * n).reshape(rows, n) / n


def length_controlled(
    wins: Array, extra_tokens: Array, resamples: int, seed: int
) -> dict[str, Any]:
    """`mean` and `ci95` of the win rate that would be left if both sides were equally long.

    wins (n,) in [0, 1], extra_tokens (n,): how much longer the responses are than their opponent's.
    The length term of AlpacaEval 2 LC (Dubois et al., arXiv 2404.04475): logit P = θ + φ tanh(Δ /
    std Δ), fitted by cross-entropy, and σ(θ) is the answer. Their term for the difficulty of an
    instruction is left out: it needs many models' judgements of the same instructions.
    """
    wins, extra = np.asarray(wins, dtype=np.float64), np.asarray(extra_tokens, dtype=np.float64)
    spread = extra.std()
    feature = np.tanh(extra / spread) if spread > 0 else np.zeros_like(extra)
    whole = _intercept(wins, feature, np.full((1, len(wins)), 1 / len(wins)))
    weights = bootstrap_weights(len(wins), resamples, seed)
    rates = np.concatenate([_intercept(wins, feature, w) for w in weights])
    low, high = np.quantile(rates, [0.025, 0.975])
    return {"mean": float(whole[0]), "ci95": [float(low), float(high)]}


def _intercept(wins: Array, feature: Array, weights: Array) -> Array:
    """(B,) σ(θ) of the regressions with prompt weights (B, n): damped Newton on (θ, φ)."""
    design = np.stack([np.ones_like(feature), feature])  # (2, n)
    pairs = design[:, None] * design[None]  # (2, 2, n)
    x = np.zeros((len(weights), 2))
    for _ in range(50):
        p = expit(x @ design)
        slope = (weights * (p - wins)) @ design.T + RIDGE * x
        curvature = np.einsum("bn,ijn->bij", weights * p * (1 - p), pairs) + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        x -= step / np.maximum(1, np.abs(step).max(axis=1, keepdims=True))
        if np.abs(step).max() < 1e-9:
            break
    rates: Array = expit(x[:, 0])
    return rates
