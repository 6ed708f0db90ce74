"""Accuracy, calibration, biases and cycles of an oracle on pairs of which the better is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comal_fast.data.conversation import Messages
from comal_fast.data.pairs import PreferencePair
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import Comparison, Oracle, self_comparison
from comal_fast.statistics import DRAW, Array, bootstrap_interval, bootstrap_mean, bootstrap_weights

BINS = 10
_ECE_RESAMPLES = 1000
_FLOOR = 1e-6  # of a probability in the log loss


@dataclass(frozen=True)
class Pair:
    """A conversation, the response that people chose, and the one that they rejected."""

    messages: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Judged:
    """What an oracle said of n pairs."""

    wins: Array
    """(n,) P(chosen ≻ rejected)."""
    first: Array | None
    """(n, 2) P(first ≻ second) with the chosen one first, and with the rejected one first; None of
    an oracle that heeds no order."""
    longer: Array
    """(n,) 1 where the chosen one is longer in characters, -1 where it is shorter, else 0."""
    cycles: Array
    """(m,) 1 where the responses to a prompt with three or more of them run in a circle."""
    seconds: float
    counts: dict[str, float]


def known_pairs(pairs: Sequence[PreferencePair]) -> list[Pair]:
    """Those whose better response is known, the likelier one as chosen."""
    found = []
    for p in pairs:
        likely = 1.0 if p.probability is None else p.probability
        if likely != 0.5:
            chosen, rejected = (p.chosen, p.rejected) if likely > 0.5 else (p.rejected, p.chosen)
            found.append(Pair(p.prompt.messages, chosen, rejected))
    return found


def judge(pairs: Sequence[Pair], oracle: Oracle, advance: Callable[[], object]) -> Judged:
    """Ask about all pairs, and about all responses of prompts that have three or more."""
    start = time.monotonic()
    items = [Comparison(p.messages, [p.chosen], [p.rejected]) for p in pairs]
    swapped = [Comparison(p.messages, [p.rejected], [p.chosen]) for p in pairs]
    in_order = oracle.first_wins([*items, *swapped])
    wins, first = np.zeros(len(pairs)), None
    if in_order is None:
        for i, matrix in enumerate(oracle.compare(items)):
            wins[i] = matrix[0, 0]
            advance()
    else:
        both = np.zeros((2, len(pairs)))
        for i, matrix in enumerate(in_order):
            both.flat[i] = matrix[0, 0]
            if i >= len(pairs):
                advance()
        wins, first = (both[0] + 1 - both[1]) / 2, both.T
    groups: dict[Messages, dict[str, None]] = {}
    for p in pairs:
        groups.setdefault(p.messages, {}).update(dict.fromkeys([p.chosen, p.rejected]))
    several = [self_comparison(m, list(texts)) for m, texts in groups.items() if len(texts) > 2]
    cycles = [float(has_strict_cycle(matrix)) for matrix in oracle.compare(several)]
    seconds = time.monotonic() - start
    oracle.release()
    longer = [np.sign(len(p.chosen) - len(p.rejected)) for p in pairs]
    return Judged(wins, first, np.array(longer), np.array(cycles), seconds, oracle.counts())


def measures(judged: Judged, resamples: int, seed: int) -> dict[str, Any]:
    """Every figure with its 95 % bootstrap interval over pairs, ready for JSON."""

    def mean(values: Array) -> dict[str, Any]:
        return bootstrap_mean(values, resamples, seed)

    wins, n = judged.wins, len(judged.wins)
    likely = np.clip(wins, _FLOOR, 1 - _FLOOR)
    ece = expected_error(wins)
    some = min(_ECE_RESAMPLES, resamples)  # each sorts all pairs anew
    spread = [expected_error(wins, w) for part in bootstrap_weights(n, some, seed) for w in part]
    result: dict[str, Any] = {
        "pairs": n,
        "accuracy": mean(correct(wins)),
        "log_loss": mean(-np.log(likely)),
        "ece": {"mean": ece, "ci95": np.quantile(spread, [0.025, 0.975]).tolist()},
        "confidence": mean(np.maximum(wins, 1 - wins)),
        "reliability": [list(row) for row in reliability(wins)],
        "position": None,
        "length": None,
        "cycles": None,
        "seconds": judged.seconds,
        "pairs_per_second": n / judged.seconds,
        **judged.counts,
    }
    if judged.first is not None:
        agree = (judged.first[:, 0] > 0.5) != (judged.first[:, 1] > 0.5)
        result["position"] = {
            "first_wins": mean(judged.first.mean(axis=1)),
            "same_in_both_orders": mean(agree.astype(float)),
        }
    if (judged.longer != 0).any():
        known = judged.longer != 0
        sides = judged.longer[known] > 0
        oracle = np.where(sides, wins[known], 1 - wins[known])
        result["length"] = {
            "pairs": int(known.sum()),
            "longer_wins": mean(oracle),
            "longer_chosen": mean(sides.astype(float)),
            "excess": mean(oracle - sides),
        }
    if len(judged.cycles):
        low, high = bootstrap_interval(judged.cycles, resamples, seed)
        share = float(judged.cycles.mean())
        result["cycles"] = {"prompts": len(judged.cycles), "mean": share, "ci95": [low, high]}
    return result


def correct(wins: Array) -> Array:
    """(n,) 1 where P(chosen ≻ rejected) is over ½, ½ at ½."""
    return np.where(np.abs(wins - 0.5) <= DRAW, 0.5, (wins > 0.5).astype(float))


def reliability(wins: Array) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, pairs) of at most BINS groups, equally large, by confidence."""
    confidence = np.maximum(wins, 1 - wins)
    right = correct(wins)
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(wins)))
    return [(float(confidence[g].mean()), float(right[g].mean()), len(g)) for g in groups]


def expected_error(wins: Array, weights: Array | None = None) -> float:
    """Expected calibration error over BINS equally large groups, pairs weighted (sum 1).

    Naeini et al. 2015, with groups of equal size. Biased upwards where groups are small.
    """
    confidence, right = np.maximum(wins, 1 - wins), correct(wins)
    weights = np.full(len(wins), 1 / len(wins)) if weights is None else weights
    total = 0.0
    for group in np.array_split(np.argsort(confidence, kind="stable"), min(BINS, len(wins))):
        total += abs(float((weights[group] * (confidence[group] - right[group])).sum()))
    return total
