"""The win rate at equal length."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from comal_fast.statistics.bootstrap import bootstrap_weights
from comal_fast.statistics.interval import Array

RIDGE = 1e-4  # keeps the length regression finite where one side wins every prompt
LENGTH_RESAMPLES = 1000  # of `length_controlled`: a regression each


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
