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
    LENGTH_RESAMPLES,
    Array,
    bootstrap_means,
    length_controlled,
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
    """Interval of `exploitability`. A maximum over noise leans upwards: most so among equals."""
    beaten_by: str | None
    """The entrant that attains it."""
    nash: float
    """Weight in the Nash mixture of the entrants, which none of them beats."""
    mean: float
    """Win rate against the others, averaged."""


def standings(names: Sequence[str], wins: Array, resamples: int, seed: int) -> list[Standing]:
    """A standing per entrant, in their order, from wins (E, E, n) as in `Tournament`."""
    matrix, size = wins.mean(axis=2), len(names)
    nash = nash_policy(_symmetric(matrix))
    losses = (wins - 0.5).reshape(size * size, -1).T  # (n, E²): P(j ≻ i) − ½ at [j, i]
    means = bootstrap_means(losses, resamples, seed).reshape(-1, size, size)
    low, high = np.quantile(means.max(axis=1), [0.025, 0.975], axis=0)
    found = []
    for i, name in enumerate(names):
        worst = int(matrix[:, i].argmax())
        gain = float(matrix[worst, i] - 0.5)
        others = (matrix[i].sum() - 0.5) / (size - 1)
        interval = (float(low[i]), float(high[i]))
        by = names[worst] if gain > 0 else None
        found.append(Standing(name, gain, interval, by, float(nash[i]), float(others)))
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
    means = bootstrap_means(game.wins.reshape(size * size, n).T, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975], axis=0).reshape(2, size, size)
    support = nash_support(game, seed)
    pairs = [
        {
            "row": game.names[i],
            "column": game.names[j],
            "win_rate": float(game.matrix[i, j]),
            "ci95": [float(low[i, j]), float(high[i, j])],
            "ties": float(game.ties[i, j]),
            "length_controlled": length_controlled(
                game.wins[i, j], game.lengths[i] - game.lengths[j], LENGTH_RESAMPLES, seed
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
