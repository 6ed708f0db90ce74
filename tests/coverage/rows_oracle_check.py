"""Rows of `oracle check`: six pairs a prompt, whose verdicts depend on each other, or one."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from comal_fast.oracle_check.measure import Judged, measures
from coverage_suite import Drawn, Row
from draws import Generator

SIZES = (10, 56, 256)
WITHIN = 0.3
"""Correlation, on the normal scale, of what decides two pairs of one prompt."""
BOUNDARY = "0 is the least value: an interval that begins there misses on one side only"
NEAR = "an interval that begins at 0, or nearly, misses on one side only"


def draw_pairs(generator: Generator, n: int, pairs: str) -> np.ndarray:
    """Return the number of each pair's prompt; "1 to 20": sizes are geometric with mean 4."""
    sizes = generator.geometric(0.25, n).clip(1, 20) if pairs == "1 to 20" else int(pairs)
    return np.repeat(np.arange(n), sizes)


def draw_right(generator: Generator, prompt: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Return which pairs the oracle judges rightly, correlated within prompts."""
    common = generator.normal(size=prompt.max() + 1)[prompt]
    own = generator.normal(size=len(prompt))
    return norm.cdf(math.sqrt(WITHIN) * common + math.sqrt(1 - WITHIN) * own) < chance


def draw_confidence(generator: Generator, prompt: np.ndarray) -> np.ndarray:
    """Return what the oracle claims: P of its winner, alike within prompts."""
    common = generator.beta(2, 2, prompt.max() + 1)[prompt]
    return 0.62 + 0.18 * common + 0.18 * generator.beta(2, 2, len(prompt))


def judged(prompt: np.ndarray, wins: np.ndarray, longer: np.ndarray | None = None) -> Judged:
    """Return what `oracle check` has measured of an oracle that is asked in both orders."""
    longer = np.zeros(len(wins)) if longer is None else longer
    return Judged(wins, prompt, np.stack([wins, wins], axis=1), longer, np.zeros(0), 1.0, {})


def _accuracy_row(n: int, pairs: str, truth: float) -> Row:
    def draw(generator: Generator) -> Drawn:
        prompt = draw_pairs(generator, n, pairs)
        right = draw_right(generator, prompt, np.full(len(prompt), truth))
        low, high = measures(judged(prompt, np.where(right, 0.8, 0.2)))["accuracy"]["ci95"]
        return low, high, truth

    bounds, why = None, ""
    if n == 56 and truth > 0.9:
        bounds, why = (0.93, 0.99), "shares of 0/1 outcomes lie on a lattice"
    return Row("oracle check: accuracy", f"{pairs} pairs a prompt", n, truth, draw, bounds, why)


def _calibration_row(n: int, pairs: str, truth: float) -> Row:
    """An oracle that is right less often than it claims, by `truth`."""

    def draw(generator: Generator) -> Drawn:
        prompt = draw_pairs(generator, n, pairs)
        confidence = draw_confidence(generator, prompt)
        right = draw_right(generator, prompt, confidence - truth)
        wins = np.where(right, confidence, 1 - confidence)
        found = measures(judged(prompt, wins))["ece"]
        low, high = found["ci95"]
        assert low <= found["mean"] <= high, "an estimate lies in its own interval"
        return low, high, truth

    bounds, why = (0.93, 1.0), BOUNDARY if truth == 0 else NEAR
    return Row("oracle check: calibration error", f"{pairs} pairs a prompt", n, truth, draw,
               bounds, why)  # fmt: skip


def _mean_row(name: str, n: int, pairs: str) -> Row:
    """Log loss, and how much more the oracle favours length than people do."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    losses = np.log1p(np.exp(-(1.0 + 1.5 * nodes)))
    truth = round(float(losses @ weights / weights.sum()), 6) if name == "log loss" else 0.1

    def draw(generator: Generator) -> Drawn:
        prompt = draw_pairs(generator, n, pairs)
        common, own = generator.normal(size=n)[prompt], generator.normal(size=len(prompt))
        margin = math.sqrt(WITHIN) * common + math.sqrt(1 - WITHIN) * own
        if name == "log loss":
            found = measures(judged(prompt, 1 / (1 + np.exp(-(1.0 + 1.5 * margin)))))["log_loss"]
        else:  # people choose the longer in 40 %, the oracle gives it P = ½ on average
            longer = np.where(norm.cdf(margin) < 0.4, 1.0, -1.0)
            oracle = generator.beta(4, 4, len(prompt))
            wins = np.where(longer > 0, oracle, 1 - oracle)
            found = measures(judged(prompt, wins, longer))["length"]["excess"]
        low, high = found["ci95"]
        return low, high, truth

    return Row(f"oracle check: {name}", f"{pairs} pairs a prompt", n, truth, draw)


ROWS = [
    *(
        _accuracy_row(n, pairs, truth)
        for n in SIZES
        for pairs, truth in (("6", 0.5), ("6", 0.7), ("6", 0.95), ("1 to 20", 0.7))
    ),
    *(
        _calibration_row(n, pairs, truth)
        for n in SIZES
        for pairs, truth in (("1", 0.0), ("1", 0.1), ("6", 0.0), ("6", 0.05), ("6", 0.1))
    ),
    *(_mean_row(name, n, "6") for name in ("log loss", "length bias") for n in SIZES),
]
