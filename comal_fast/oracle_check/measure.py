"""Accuracy, calibration, biases and cycles of an oracle on pairs of which the better is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comal_fast.data.conversation import Messages
from comal_fast.data.pairs import PreferencePair
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracle_check.calibration import (
    BINS,
    calibration_error,
    correct,
    group_by_confidence,
    reliability,
)
from comal_fast.oracles import Comparison, Oracle, self_comparison
from comal_fast.statistics import DRAW, Array, Interval
from comal_fast.statistics.clustered import clustered_mean
from comal_fast.statistics.means import rate_interval, to_json

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
    prompt: NDArray[np.int64]
    """(n,) number of each pair's prompt, from 0."""
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
    longer = np.array([np.sign(len(p.chosen) - len(p.rejected)) for p in pairs])
    numbers = {messages: number for number, messages in enumerate(groups)}
    prompt = np.array([numbers[p.messages] for p in pairs])
    return Judged(wins, prompt, first, longer, np.array(cycles), seconds, oracle.counts())


def measures(judged: Judged) -> dict[str, Any]:
    """Return every figure with its 95 % interval over prompts, ready for JSON."""
    wins, n = judged.wins, len(judged.wins)
    everything = np.ones(n, dtype=bool)

    def rate(values: Array, where: NDArray[np.bool_] = everything) -> dict[str, Any]:
        return to_json(_mean(values, judged.prompt, where))

    likely = np.clip(wins, _FLOOR, 1 - _FLOOR)
    result: dict[str, Any] = {
        "pairs": n,
        "prompts": int(judged.prompt.max()) + 1,
        "accuracy": rate(correct(wins)),
        "log_loss": to_json(clustered_mean(-np.log(likely), judged.prompt)),
        "ece": to_json(calibration_error(wins, judged.prompt)),
        "confidence": to_json(clustered_mean(np.maximum(wins, 1 - wins), judged.prompt)),
        "reliability": [list(row) for row in reliability(wins)],
        "reliability_ci95": [
            rate(correct(wins), np.isin(np.arange(n), group))["ci95"]
            for group in group_by_confidence(wins, BINS)
        ],
        "position": None,
        "length": None,
        "cycles": None,
        "seconds": judged.seconds,
        "pairs_per_second": n / judged.seconds,
        **judged.counts,
    }
    if judged.first is not None:
        sides = judged.first - 0.5
        decided: NDArray[np.bool_] = np.all(np.abs(sides) > DRAW, axis=1)
        agree = (sides[:, 0] > 0) != (sides[:, 1] > 0)
        result["position"] = {
            "first_wins": rate(judged.first.mean(axis=1)),
            "same_in_both_orders": rate(agree.astype(float), decided) if decided.any() else None,
            "ties": rate((~decided).astype(float)),
        }
    known = judged.longer != 0
    if known.any():
        chosen = (judged.longer > 0).astype(float)
        oracle = np.where(judged.longer > 0, wins, 1 - wins)
        # a difference lies in [−1, 1], so half of it and ½ is a rate
        half = _mean((oracle - chosen + 1) / 2, judged.prompt, known)
        excess = Interval(2 * half.mean - 1, 2 * half.low - 1, 2 * half.high - 1)
        result["length"] = {
            "pairs": int(known.sum()),
            "longer_wins": rate(oracle, known),
            "longer_chosen": rate(chosen, known),
            "excess": to_json(excess),
        }
    if len(judged.cycles):
        result["cycles"] = {"prompts": len(judged.cycles), **to_json(rate_interval(judged.cycles))}
    return result


def _mean(values: Array, prompt: NDArray[np.int64], where: NDArray[np.bool_]) -> Interval:
    """Return the mean of the rates at `where`, with its interval over their prompts."""
    _, cluster = np.unique(prompt[where], return_inverse=True)
    return clustered_mean(values[where], cluster, is_rate=True)
