"""How far an oracle's confidence is from its accuracy.

Pairs are put into groups of alike confidence. In group b, of a share w_b of the pairs, δ_b is the
expected difference of accuracy and confidence, and the calibration error is √(Σ w_b δ_b²). Of the
observed differences d_b the sum Σ w_b d_b² is too large on average, by the trace of W S, where S is
the covariance of the d_b: it is subtracted (Kumar, Liang & Ma, arXiv 1909.10155, and Bröcker 2012).

The interval inverts the distribution of the sum. A quadratic form of normal variables is close to
a noncentral χ² variable of matching mean and variance (Patnaik, 1949), here a noncentral F, as S is
estimated from the prompts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import ncf, t

from comal_fast.statistics import DRAW, Array, Interval

BINS = 10
PROMPTS_PER_BIN = 10
LARGE = 1e4  # noncentrality from which on the square root of the sum is normal


def correct(wins: Array) -> Array:
    """Return 1 where P(chosen ≻ rejected) is over ½, ½ at ½, 0 below, as (n,)."""
    return np.where(np.abs(wins - 0.5) <= DRAW, 0.5, (wins > 0.5).astype(float))


def group_by_confidence(wins: Array, bins: int) -> list[NDArray[np.int64]]:
    """Return the places of the pairs of at most `bins` groups, equally large, by confidence."""
    confidence = np.maximum(wins, 1 - wins)
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(wins)))


def reliability(wins: Array) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, pairs) of at most `BINS` groups by confidence."""
    confidence, right = np.maximum(wins, 1 - wins), correct(wins)
    groups = group_by_confidence(wins, BINS)
    return [(float(confidence[g].mean()), float(right[g].mean()), len(g)) for g in groups]


def calibration_error(wins: Array, prompt: NDArray[np.int64]) -> Interval:
    """Return the root mean square calibration error, without its upward bias, with its interval.

    Args:
        wins: (n,) P(chosen ≻ rejected).
        prompt: (n,) number of each pair's prompt, from 0; pairs of one prompt depend on each other.

    Returns:
        The error; its interval begins at 0 where an exactly calibrated oracle is not ruled out.
    """
    num_prompts = int(prompt.max()) + 1
    confidence = np.maximum(wins, 1 - wins)
    right = correct(wins)
    gaps = right - confidence
    bins = min(BINS, max(1, num_prompts // PROMPTS_PER_BIN))
    groups = group_by_confidence(wins, bins)
    root = np.sqrt([len(group) / len(wins) for group in groups])
    difference = np.array([gaps[group].mean() for group in groups])
    observed = float(((root * difference) ** 2).sum())
    if num_prompts < 2:
        return Interval(math.sqrt(observed), 0.0, 1.0)
    # covariance of the groups' differences, from what each prompt adds to them
    added = np.zeros((num_prompts, len(groups)))
    for column, group in enumerate(groups):
        deviations = (gaps[group] - difference[column]) / len(group)
        added[:, column] = np.bincount(prompt[group], deviations, num_prompts)
    covariance = added.T @ added * num_prompts / (num_prompts - 1)
    # few prompts may agree by chance: one prompt's share is the variance of draws, at a rate
    # between confidence and accuracy, with one win and one loss that were not seen
    middle = [((confidence[g] + right[g]).sum() + 1) / (2 * len(g) + 2) for g in groups]
    binomial = np.diag([m * (1 - m) / len(g) for m, g in zip(middle, groups, strict=True)])
    covariance += (binomial - covariance) / num_prompts
    weighted = root[:, None] * covariance * root
    bias = float(weighted.trace())
    direction = root * difference
    scale = float((weighted**2).sum()) / bias
    if observed > 0:  # the variance that miscalibration itself adds, Var(Σ w δ d)
        scale = max(scale, float(direction @ weighted @ direction) / observed)
    freedom = max(num_prompts - len(groups), 1)
    # 0 is tested with no less than the variance of draws of a calibrated oracle, as Wilson does
    draws = confidence * (1 - confidence)
    calibrated = sum(float(draws[group].sum()) / (len(group) * len(wins)) for group in groups)
    ratio = max(1.0, calibrated / bias)
    low = _error_at(0.975, observed, ratio * bias, ratio * scale, freedom)
    if low > 0:
        low = _error_at(0.975, observed, bias, scale, freedom)
    # a fit that is better than chance allows rules out no more than the expected one
    high = _error_at(0.025, max(observed, bias), bias, scale, freedom)
    return Interval(math.sqrt(max(0.0, observed - bias)), low, min(high, 1.0))


def _error_at(
    probability: float, observed: float, bias: float, scale: float, freedom: float
) -> float:
    """Return the error for which Σ w d² is at most `observed` with this probability, or 0.

    Σ w d² is taken as `scale` times a noncentral χ² variable of bias / scale degrees.
    """
    degrees = bias / scale
    if observed > LARGE * scale:  # normal, by the delta method
        return math.sqrt(observed) + float(t.ppf(1 - probability, freedom)) * math.sqrt(scale)

    def excess(away: float) -> float:
        return float(ncf.cdf(observed / bias, degrees, freedom, away)) - probability

    least, most = 1e-9, 4 * (degrees + observed / scale) + 20
    if excess(least) <= 0:
        return 0.0
    while excess(most) > 0:
        most *= 2
    return math.sqrt(scale * float(brentq(excess, least, most, xtol=1e-9)))
