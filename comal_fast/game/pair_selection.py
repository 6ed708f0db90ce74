"""Which pairs of a prompt's K samples are trained on, and what each pair is regressed on.

The square losses regress u(y) − u(y'), with u = log π − log π_mix, on a target T(y, y')/η over the
pairs that are trained on. Where T = s(y) − s(y') is a difference of one number per response, the
minimiser is π ∝ π_mix exp(s/η) whatever the pairs. With s(y) = P(y ≻ π_t) that is INPO's step.

- `label`: T = P(y ≻ y') − ½ is no such difference where preferences are intransitive. Its
  projection is P(y ≻ π_t) − ½ only where all pairs of the samples are trained on.
- `win_rate`: s(y) is y's mean win rate over the other samples. A pair that was chosen by the same
  win rates was chosen for their errors too, so the step is off at finite K (the winner's curse).
- `cross_fit`: the samples are cut into two halves. Each half chooses its pairs by the win rates
  within it, and takes s against the other half. The samples there are independent of the choice,
  so E[T | y, y'] = P(y ≻ π_t) − P(y' ≻ π_t) exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from comal_fast.game.preference import Array

STRATEGIES = ("best_worst", "best_second", "all")
TARGETS = ("label", "win_rate", "cross_fit")
LABELS = ("soft", "sampled", "hard")
TIE = 1e-9  # a preference this near to ½ is a tie


def mean_win_rates(matrix: Array) -> Array:
    """Return (K,) the mean of each row of a (K, K) preference matrix over the other samples."""
    result: Array = (matrix.sum(axis=1) - matrix.diagonal()) / (len(matrix) - 1)
    return result


def sample_halves(count: int) -> list[list[int]]:
    """Return the even and the odd ones of `count` sample numbers, the halves of cross-fitting."""
    return [list(range(0, count, 2)), list(range(1, count, 2))]


def choose_pairs(
    matrix: Array,
    strategy: str,
    *,
    texts: Sequence[int] | None = None,
    draws: bool = False,
    halves: bool = False,
) -> list[tuple[int, int]]:
    """Return the (chosen, rejected) sample numbers that a strategy pairs, by mean win rate.

    Args:
        matrix: (K, K) P; the response that it prefers in a pair is `chosen`.
        strategy: One of STRATEGIES. Best, second and worst are ranks among distinct texts.
        texts: One number per sample, equal for equal texts. None: all differ.
        draws: Keep pairs on which P = ½. Hard labels learn nothing from them.
        halves: Rank and pair within each half of the samples alone, as cross-fitting does.
    """
    names = list(range(len(matrix))) if texts is None else list(texts)
    groups = sample_halves(len(matrix)) if halves else [list(range(len(matrix)))]
    pairs = [pair for group in groups for pair in _pairs_within(matrix, group, strategy, names)]
    ordered = [(a, b) if matrix[a, b] >= 0.5 else (b, a) for a, b in pairs]
    return [(a, b) for a, b in ordered if draws or matrix[a, b] > 0.5 + TIE]


def _pairs_within(
    matrix: Array, group: list[int], strategy: str, texts: list[int]
) -> list[tuple[int, int]]:
    if len(group) < 2:
        return []
    wins = mean_win_rates(matrix[np.ix_(group, group)])
    ranked = [group[i] for i in sorted(range(len(group)), key=lambda i: (-wins[i], i))]
    if strategy == "all":
        return [(a, b) for a, b in combinations(ranked, 2) if texts[a] != texts[b]]
    distinct: dict[int, int] = {}
    for sample in ranked:
        distinct.setdefault(texts[sample], sample)
    best, *others = distinct.values()
    if not others:
        return []
    return [(best, others[0 if strategy == "best_second" else -1])]


def target_margins(
    judged: Array, pairs: Sequence[tuple[int, int]], target: str
) -> list[float]:  # (P,)
    """Return T of each (chosen, rejected) pair: what its log-ratio is regressed on, times η.

    Args:
        judged: (K, K) labels of `label_matrix`, from which preferences and win rates are taken.
        pairs: Sample numbers, as from `choose_pairs`; for `cross_fit` with `halves`.
        target: One of TARGETS.
    """
    if target == "label":
        return [float(judged[a, b] - 0.5) for a, b in pairs]
    if target == "win_rate":
        wins = mean_win_rates(judged)
        return [float(wins[a] - wins[b]) for a, b in pairs]
    halves = sample_halves(len(judged))
    margins = []
    for a, b in pairs:
        opponents = halves[1 - a % 2]  # sample i is in half i mod 2
        margins.append(float((judged[a, opponents] - judged[b, opponents]).mean()))
    return margins


def label_matrix(matrix: Array, labels: str, texts: Sequence[int], seed: str = "") -> Array:
    """Return (K, K) what a pair is said to be: P, a draw from it, or who is preferred.

    Args:
        matrix: (K, K) P.
        labels: `soft`: P itself. `sampled`: 1 with probability P, else 0, one draw a pair. `hard`:
            1 where P > ½, ½ at ½, else 0, which makes the game the majority's.
        texts: One number per sample; a text against itself is ½.
        seed: Names the stream of the draws.
    """
    if labels == "soft":
        return matrix
    if labels == "hard":
        majority: Array = np.where(np.abs(matrix - 0.5) <= TIE, 0.5, (matrix > 0.5).astype(float))
        return majority
    digest = hashlib.sha256(seed.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = np.triu((generator.random(matrix.shape) < matrix).astype(float), 1)
    judged = drawn + np.tril(1 - drawn.T, -1)
    same = np.equal.outer(np.asarray(texts), np.asarray(texts))
    result: Array = np.where(same, 0.5, judged)
    return result
