"""The population step of the trainer's algorithm: sampled, judged, selected, labelled, exactly.

`comal_fast.game.operators` has the step of each loss on all pairs of responses. A trainer has K
samples of π_t, chooses pairs among them, and labels those. Over tabular policies the minimiser of
the expected loss follows from two matrices, expectations over all draws of K samples:

    W[a, b] = E[number of pairs with a chosen, b rejected],   M[a, b] = E[sum of their targets T].

- Square losses of pairs: Σ_ab W[a, b] (u(a) − u(b) − T/η)² is least where L u = m/η, with L the
  Laplacian of the graph with weights W + Wᵀ, and m(a) = Σ_b M[a, b] − M[b, a].
- The logistic loss (dpo): Newton's method on u, with labels T + ½.
- Losses of single responses (sppo): u(y) is the mean target of y over the draws that hold it,
  projected onto the simplex (`square_projection`). dro's solved baseline makes its loss that of all
  pairs with differences of win rates as targets.

Draws that differ in their order alone are taken together: a draw is a composition, the number of
times that each response came up. Where win rates are tied the order decides, and every order of
first appearance is taken with its probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from math import comb

import numpy as np
from scipy.special import gammaln

from comal_fast.game.pair_selection import (
    choose_pairs,
    label_matrix,
    mean_win_rates,
    target_margins,
)
from comal_fast.game.preference import Array

LOWEST = -500.0  # log-probabilities are kept from here on, so that no square of one underflows
_NEWTON_STEPS = 60
_LARGEST_SCORE = 30.0  # a log-odds beyond which dpo's loss has no minimiser in sight


@dataclass(frozen=True)
class Recipe:
    """How a trainer turns K samples into a loss: names as in the configuration."""

    prox: str = "inpo"
    strategy: str = "all"
    labels: str = "soft"
    target: str = "label"
    samples: int = 4
    log_z: str = "samples"


def compositions(kinds: int, total: int) -> np.ndarray:
    """Return (C, kinds) every way to draw `total` samples of so many kinds, orders left out."""

    def parts(left: int, places: int) -> Iterator[tuple[int, ...]]:
        if places == 1:
            yield (left,)
            return
        for first in range(left, -1, -1):
            for rest in parts(left - first, places - 1):
                yield (first, *rest)

    return np.array(list(parts(total, kinds)), dtype=np.int64)


def count_compositions(kinds: int, total: int) -> int:
    """Return how many rows `compositions` has."""
    return comb(kinds + total - 1, total)


def orders(counts: np.ndarray, matrix: Array, strategy: str) -> Iterator[tuple[float, list[int]]]:
    """Yield (probability, samples as response numbers) of the orders that a selection can tell.

    A selection ranks by win rate, then by first appearance. So one order stands for all, but where
    two responses are tied. The order of first appearances is one of drawing without replacement.
    """
    kinds = np.flatnonzero(counts)
    drawn = np.repeat(kinds, counts[kinds])
    wins = (matrix[np.ix_(kinds, drawn)].sum(axis=1) - 0.5) / max(1, len(drawn) - 1)
    tied = strategy != "all" and (np.diff(np.sort(wins)) < 1e-12).any()
    if not tied:
        yield 1.0, drawn.tolist()
        return
    for order in permutations(kinds.tolist()):
        left = counts[list(order)].astype(float)
        chance = float(np.prod(left / np.cumsum(left[::-1])[::-1]))
        yield chance, [kind for kind in order for _ in range(counts[kind])]


@dataclass(frozen=True)
class Law:
    """Which pairs come of each composition, before it is known how likely that composition is.

    counts (C, n); log_ways (C,): the log of its number of orders; pairs, margins (C, n, n): W and M
    given the composition; wins (C, n): the mean win rate of each response in it over the other
    samples, 0 where it is absent. apart: the margins are against `opponents` independent samples,
    so their mean is one over π.
    """

    counts: np.ndarray
    log_ways: Array
    pairs: Array
    margins: Array
    wins: Array

    @staticmethod
    def of(matrix: Array, judged: Array, recipe: Recipe, samples: int, crossed: bool) -> Law:
        """Enumerate the compositions of `samples` draws and ask the trainer's own selection.

        matrix, judged (n, n): P, and what a pair is labelled. crossed: the margins are left to be
        taken against independent samples.
        """
        n = len(matrix)
        counts = compositions(n, samples)
        pairs, margins = np.zeros((2, len(counts), n, n))
        wins = np.zeros(counts.shape)
        draws = recipe.labels != "hard" or recipe.target != "label"
        for c, row in enumerate(counts):
            for chance, drawn in orders(row, matrix, recipe.strategy):
                block = matrix[np.ix_(drawn, drawn)]
                chosen = (
                    choose_pairs(block, recipe.strategy, texts=drawn, draws=draws)
                    if samples > 1
                    else []
                )
                target = "label" if crossed else recipe.target
                said = target_margins(judged[np.ix_(drawn, drawn)], chosen, target)
                for (a, b), margin in zip(chosen, said, strict=True):
                    pairs[c, drawn[a], drawn[b]] += chance
                    margins[c, drawn[a], drawn[b]] += chance * margin
            if samples > 1:
                wins[c, drawn] = mean_win_rates(block)
        log_ways = gammaln(samples + 1) - gammaln(counts + 1).sum(axis=1)
        return Law(counts, log_ways, pairs, margins, wins)

    def chances(self, log_policy: Array) -> Array:
        """Return (..., C) the probability of each composition under π; log_policy (..., n)."""
        logs = np.where(np.isfinite(log_policy), np.maximum(log_policy, LOWEST), -np.inf)
        possible = np.where(np.isfinite(logs), logs, 0.0) @ self.counts.T
        absent = (~np.isfinite(logs)).astype(float) @ self.counts.T > 0
        result: Array = np.where(absent, 0.0, np.exp(self.log_ways + possible))
        return result


class SampledStep:
    """The exact step of a recipe on G games of up to n responses, as one array.

    A response that a game lacks has probability 0. Everything is enumerated once.
    """

    def __init__(self, matrices: list[Array], recipe: Recipe) -> None:
        """matrices: (n_g, n_g) P of each game."""
        self.recipe = recipe
        n = max(len(matrix) for matrix in matrices)
        crossed = recipe.target == "cross_fit"
        half = recipe.samples // 2
        sizes = [recipe.samples - half, half] if crossed else [recipe.samples]
        self.judged = np.full((len(matrices), n, n), 0.5)
        laws: list[list[Law]] = [[] for _ in sizes]
        for g, matrix in enumerate(matrices):
            judged = expected_labels(matrix, recipe.labels)
            self.judged[g, : len(matrix), : len(matrix)] = judged
            for place, size in enumerate(sizes):
                law = Law.of(matrix, judged, recipe, size, crossed)
                laws[place].append(_padded(law, n, size))
        self.laws = [_stacked(same) for same in laws]

    def pair_law(self, log_policy: Array) -> tuple[Array, Array]:
        """Return W and M (G, n, n) where the samples are of π; log_policy (G, n)."""
        pairs, margins = np.zeros((2, *self.judged.shape))
        for law in self.laws:
            chances = law.chances(log_policy)[:, None]
            shape = self.judged.shape
            drawn = (chances @ law.pairs.reshape(*chances.shape[::2], -1)).reshape(shape)
            if self.recipe.target == "cross_fit":
                # opponents are independent samples of π: the mean of their labels is one over π
                wins = (self.judged @ np.exp(log_policy)[..., None])[..., 0]
                margins += drawn * (wins[:, :, None] - wins[:, None, :])
            else:
                said = chances @ law.margins.reshape(*chances.shape[::2], -1)
                margins += said.reshape(shape)
            pairs += drawn
        return pairs, margins

    def response_targets(
        self, log_policy: Array, log_start: Array, pull: Array, eta: float
    ) -> Array:
        """Return (G, n) the mean target of sppo's loss for each response; see `mean_targets`."""
        law = self.laws[0]
        chances = law.chances(log_policy)
        away = np.where(np.isfinite(log_policy), log_start - log_policy, 0.0)
        return mean_targets(law.counts, chances, law.wins, away, pull, eta, self.recipe.log_z)


def mean_targets(
    counts: np.ndarray,  # (D, n)
    chances: Array,  # (G, D)
    wins: Array,  # (G, D, n)
    away: Array,  # (G, n)
    pull: Array,  # (G, n)
    eta: float,
    log_z: str,
) -> Array:  # (G, n)
    """Return the mean of (ŵ(y) − ½)/η − pull(y) − log Z over the draws that hold y.

    Args:
        counts: How often each response is in each of D draws; chances: how likely the draws are.
        wins: Each response's win rate within a draw.
        away: log X − log π_t, X the policy that the step starts from, under which Z is a mean.
        pull: τ/η log(X/π_ref).
        log_z: `samples` for log mean X/π_t exp((ŵ − ½)/η − pull) over a draw, `zero` for 0.
    """
    gain = (wins - 0.5) / eta - pull[:, None, :]
    estimate = np.zeros(wins.shape[:2])
    if log_z == "samples":
        with np.errstate(divide="ignore"):
            share = np.log(counts / counts.sum(axis=1, keepdims=True))
        terms = gain + away[:, None, :] + share
        top = terms.max(axis=-1, keepdims=True)
        estimate = (top + np.log(np.exp(terms - top).sum(axis=-1, keepdims=True)))[..., 0]
    weight = chances[..., None] * counts
    total = (weight * (gain - estimate[..., None])).sum(axis=1)
    drawn = weight.sum(axis=1)
    result: Array = np.divide(total, drawn, out=np.zeros_like(total), where=drawn > 0)
    return result


def expected_labels(matrix: Array, labels: str) -> Array:
    """Return (n, n) the mean of a label: sampled ones are draws from P, so their mean is P."""
    kinds = list(range(len(matrix)))
    return label_matrix(matrix, "soft" if labels == "sampled" else labels, kinds)


def least_squares(pairs: Array, margins: Array) -> Array:
    """Return (G, n) u that minimises Σ_ab W (u_a − u_b)² − 2 M (u_a − u_b); W, M (G, n, n).

    The Laplacian system is solved by elimination in which only positive numbers are added to each
    other (Grassmann, Taksar & Heyman 1985), the rarest responses first: their u keep their digits
    where π is 1e-100. The commonest response has u = 0, as has one that no pair connects.
    """
    weight = pairs + np.swapaxes(pairs, -1, -2)
    order = np.argsort(weight.sum(axis=-1), axis=-1, kind="stable")
    weight = np.take_along_axis(weight, order[:, :, None], axis=1)
    weight = np.take_along_axis(weight, order[:, None, :], axis=2)
    push = np.take_along_axis(margins.sum(axis=-1) - margins.sum(axis=-2), order, axis=1)
    n = push.shape[1]
    shares = np.zeros_like(weight)  # (G, n, n): where the weight of an eliminated response goes
    totals = np.zeros_like(push)
    for k in range(n - 1):
        links = weight[:, k, k + 1 :]
        totals[:, k] = links.sum(axis=1)
        share = np.divide(
            links, totals[:, k, None], out=np.zeros_like(links), where=totals[:, k, None] > 0
        )
        shares[:, k, k + 1 :] = share
        push[:, k + 1 :] += share * push[:, k, None]
        weight[:, k + 1 :, k + 1 :] += links[:, :, None] * share[:, None, :]
    solved = np.zeros_like(push)
    for k in range(n - 2, -1, -1):
        own = np.divide(push[:, k], totals[:, k], out=np.zeros(len(push)), where=totals[:, k] > 0)
        solved[:, k] = own + (shares[:, k, k + 1 :] * solved[:, k + 1 :]).sum(axis=1)
    result = np.zeros_like(solved)
    np.put_along_axis(result, order, solved, axis=1)
    return result


def logistic(pairs: Array, margins: Array, beta: float) -> Array:
    """Return (G, n) u that minimises the logistic loss of β (u_a − u_b) on labels T + ½.

    Newton's method; scores stay within ± 30 where labels of 0 and 1 ask for infinite ones.
    """
    weight = pairs + np.swapaxes(pairs, -1, -2)
    push = margins.sum(axis=-1) - margins.sum(axis=-2)
    scores = np.zeros(push.shape)
    for _ in range(_NEWTON_STEPS):
        apart = scores[..., :, None] - scores[..., None, :]
        likely = 1 / (1 + np.exp(-apart))
        residual = push - (weight * (likely - 0.5)).sum(axis=-1)
        slope = weight * likely * (1 - likely)
        # the least-squares step with the curvature as weights
        change = least_squares(slope / 2, spread_push(residual))
        longest = np.abs(change).max(axis=-1, keepdims=True)
        scores = scores + change * np.minimum(1.0, 2.0 / np.maximum(longest, 2.0))
        scores = np.clip(
            scores - scores.mean(axis=-1, keepdims=True), -_LARGEST_SCORE, _LARGEST_SCORE
        )
        if longest.max() < 1e-11:
            break
    result: Array = scores / beta
    return result


def spread_push(push: Array) -> Array:
    """Return margins (..., n, n) whose row sums less column sums are `push` (..., n), of sum 0."""
    n = push.shape[-1]
    return (push[..., :, None] - push[..., None, :]) / (2 * n)


def _padded(law: Law, n: int, samples: int) -> Law:
    """Return the law with its compositions among those of n responses."""
    own = law.counts.shape[1]
    if own == n:
        return law
    counts = compositions(n, samples)
    places = np.flatnonzero((counts[:, own:] == 0).all(axis=1))
    log_ways = gammaln(samples + 1) - gammaln(counts + 1).sum(axis=1)
    pairs, margins = np.zeros((2, len(counts), n, n))
    wins = np.zeros(counts.shape)
    pairs[places, :own, :own], margins[places, :own, :own] = law.pairs, law.margins
    wins[places, :own] = law.wins
    return Law(counts, log_ways, pairs, margins, wins)


def _stacked(laws: list[Law]) -> Law:
    """Return one law of G games; counts stay (C, n), the rest gains an axis in front."""
    pairs, margins, wins = (
        np.stack([getattr(law, name) for law in laws]) for name in ("pairs", "margins", "wins")
    )
    return Law(laws[0].counts, laws[0].log_ways, pairs, margins, wins)
