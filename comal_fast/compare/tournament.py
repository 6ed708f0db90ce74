"""Every entrant against every other on the same prompts: win rates, Nash, exploitability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from comal_fast.game.nash import nash_policy
from comal_fast.oracles import Comparison, Messages, Oracle
from comal_fast.statistics import (
    LEAST_PROMPTS,
    Array,
    best_opponent_bounds,
    bootstrap_means,
    length_controlled,
    rate_interval,
    tie_share,
)

NASH_RESAMPLES = 200  # a linear program each


@dataclass(frozen=True)
class Entrant:
    """Held-out responses of one policy: per prompt its samples, and their mean length."""

    name: str
    responses: list[list[str]]
    lengths: Array
    """(n,) tokens."""


@dataclass(frozen=True)
class Tournament:
    """The round robin of E entrants on n prompts."""

    names: tuple[str, ...]
    wins: Array
    """(E, E, n): mean P(sample of i ≻ sample of j), ½ on the diagonal."""
    ties: Array
    """(E, E): share of the comparisons at P = ½."""
    lengths: Array
    """(E, n) tokens."""

    @property
    def matrix(self) -> Array:
        """(E, E) win rates: the empirical game."""
        rates: Array = self.wins.mean(axis=2)
        return rates


def play(
    entrants: list[Entrant],
    prompts: list[Messages],
    oracle: Oracle,
    advance: Callable[[], object] = lambda: None,
) -> Tournament:
    """Judge all pairs on all prompts; `advance` is called for each pair and prompt."""
    size, n = len(entrants), len(prompts)
    wins, ties = np.full((size, size, n), 0.5), np.zeros((size, size))
    games = [(i, j) for i in range(size) for j in range(i)]
    comparisons = (
        Comparison(messages, mine, theirs)
        for i, j in games
        for messages, mine, theirs in zip(
            prompts, entrants[i].responses, entrants[j].responses, strict=True
        )
    )
    matrices = oracle.compare(comparisons)  # one call: an oracle may load a model for each
    for i, j in games:
        drawn = []
        for x, matrix in enumerate(islice(matrices, n)):
            wins[i, j, x] = matrix.mean()
            drawn.append(tie_share(matrix))
            advance()
        wins[j, i] = 1 - wins[i, j]
        ties[i, j] = ties[j, i] = float(np.mean(drawn))
    oracle.release()
    lengths = np.stack([e.lengths for e in entrants])
    return Tournament(tuple(e.name for e in entrants), wins, ties, lengths)


@dataclass(frozen=True)
class Standing:
    """What the empirical game says of one entrant; intervals are 95 %, over prompts."""

    name: str
    exploitability: float
    """max_j P(j ≻ this one) − ½: 0 for an entrant that no other beats."""
    interval: tuple[float, float]
    """Interval of `exploitability`, by bounds that hold for the best of all opponents."""
    best_opponent: str | None
    """The entrant that attains it; None where no other beats this one."""
    beaten_by: str | None
    """An entrant that is shown to beat this one, all opponents counted: the best one if it is."""
    nash: float
    """Weight in the Nash mixture of the entrants, which none of them beats."""
    mean: float
    """Win rate against the others, averaged."""


def standings(names: Sequence[str], wins: Array, resamples: int, seed: int) -> list[Standing]:
    """Return a standing per entrant, in their order.

    Args:
        names: Of the E entrants.
        wins: (E, E, n) as in `Tournament`.
        resamples: Draws behind the bounds that hold for all opponents of an entrant.
        seed: Of the draws.
    """
    matrix, size = wins.mean(axis=2), len(names)
    nash = nash_policy(_symmetric(matrix))
    found = []
    for i, name in enumerate(names):
        opponents = [j for j in range(size) if j != i]
        low, high = best_opponent_bounds(wins[opponents, i].T, resamples, seed)
        best = int(matrix[opponents, i].argmax())
        gain = max(0.0, float(matrix[opponents[best], i] - 0.5))
        shown = best if low[best] > 0.5 else int(low.argmax())
        beaten = wins.shape[2] >= LEAST_PROMPTS and low[shown] > 0.5
        found.append(
            Standing(
                name,
                gain,
                (max(0.0, float(low.max() - 0.5)), max(0.0, float(high.max() - 0.5))),
                names[opponents[best]] if gain > 0 else None,
                names[opponents[shown]] if beaten else None,
                float(nash[i]),
                float(matrix[i, opponents].mean()),
            )
        )
    return found


def nash_support(game: Tournament, seed: int) -> Array:
    """(E,) share of 200 resamples of the prompts in which the Nash mixture holds each entrant."""
    size = len(game.names)
    means = bootstrap_means(game.wins.reshape(size * size, -1).T, NASH_RESAMPLES, seed)
    mixtures = [nash_policy(_symmetric(m.reshape(size, size))) for m in means]
    share: Array = (np.array(mixtures) > 1e-9).mean(axis=0)
    return share


def to_json(game: Tournament, resamples: int, seed: int) -> dict[str, Any]:
    """The round robin as plain containers: every pair, every entrant, the game, with intervals."""
    size, n = len(game.names), game.wins.shape[2]
    rates = {(i, j): rate_interval(game.wins[i, j]) for i in range(size) for j in range(size)}
    support = nash_support(game, seed)
    pairs = [
        {
            "row": game.names[i],
            "column": game.names[j],
            "win_rate": float(game.matrix[i, j]),
            "ci95": [rates[i, j].low, rates[i, j].high],
            "ties": float(game.ties[i, j]),
            "length_controlled": length_controlled(
                game.wins[i, j], game.lengths[i] - game.lengths[j]
            ),
        }
        for i in range(size)
        for j in range(size)
        if i != j
    ]
    return {
        "n_prompts": n,
        "names": list(game.names),
        "matrix": game.matrix.tolist(),
        "pairs": pairs,
        "entrants": [
            {
                "name": s.name,
                "nash_weight": s.nash,
                "in_nash_of_resamples": float(share),
                "exploitability": s.exploitability,
                "ci95": list(s.interval),
                "best_opponent": s.best_opponent,
                "beaten_by": s.beaten_by,
                "mean_win_rate": s.mean,
                "tokens": float(lengths.mean()),
            }
            for s, share, lengths in zip(
                standings(game.names, game.wins, resamples, seed),
                support,
                game.lengths,
                strict=True,
            )
        ],
    }


def _symmetric(matrix: Array) -> Array:
    """The matrix without the rounding of its means, so that P + Pᵀ = 1 exactly."""
    even: Array = (matrix + 1 - matrix.T) / 2
    return even
