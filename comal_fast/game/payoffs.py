"""Payoff transforms Ψ(P): the game that is played in place of the preferences themselves.

Which Ψ keeps what a vote should, by arXiv 2505.20627: with Ψ(t) + Ψ(1 − t) constant the game stays
symmetric with constant sum; with Ψ(t) on ½'s side of t, and on it only for t = ½, a response that
beats every other one is the Nash policy (Condorcet consistency), and what is played lies in the
smallest set that beats all the rest (Smith consistency). All of PAYOFFS have both; Ψ's slope
decides how much a large margin weighs against many small ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import logit

from comal_fast.errors import InputError
from comal_fast.game.preference import Array, Game


def majority(matrix: Array) -> Array:
    """1 for P > ½, 0 for P < ½: only who wins counts. Its Nash policy is the maximal lottery."""
    return 0.5 + np.sign(matrix - 0.5) / 2


def scaled_logit(matrix: Array) -> Array:
    """½ + log(P/(1 − P)) / 2s, s the largest |log-odds|: under Bradley–Terry linear in r − r'."""
    odds = logit(matrix)
    if not np.isfinite(odds).all():
        raise InputError("payoff logit: a preference of 0 or 1 has infinite odds; take majority")
    largest = np.abs(odds).max(axis=(-1, -2), keepdims=True)
    scaled: Array = odds / (2 * np.where(largest > 0, largest, 1.0)) + 0.5
    return scaled


def root(matrix: Array) -> Array:
    """½ + sign(P − ½) √|2P − 1| / 2: between P itself and the majority."""
    margin = 2 * matrix - 1
    return 0.5 + np.sign(margin) * np.sqrt(np.abs(margin)) / 2


PAYOFFS: dict[str, Callable[[Array], Array]] = {
    "preference": lambda matrix: matrix,
    "root": root,
    "majority": majority,
    "logit": scaled_logit,
}


def with_payoff(game: Game, name: str) -> Game:
    """The game of Ψ(P), Ψ by its name in PAYOFFS, with the same responses; (n, n) float64.

    InputError for an unknown name, or where Ψ is not finite.
    """
    if name not in PAYOFFS:
        raise InputError(f"payoff = {name!r}: it must be one of {', '.join(PAYOFFS)}")
    upper = np.triu(PAYOFFS[name](game.matrix) - 0.5, 1)  # antisymmetric to the last digit
    return Game(0.5 + (upper - upper.T), game.names)
