"""The `matrix` oracle: a given preference matrix over known responses, whatever the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np

from comal_fast.config.oracle import MatrixConfig
from comal_fast.errors import InputError
from comal_fast.game.preference import Array, Game, load_game
from comal_fast.oracles.base import Comparison, Oracle


def with_unknown(matrix: Array, unknown_wins: float) -> Array:
    """(n, n) → (n+1, n+1): one more response, last, that stands for every unknown one.

    It beats each known one with probability `unknown_wins`, and draws with itself.
    """
    n = len(matrix)
    whole = np.full((n + 1, n + 1), 0.5)
    whole[:n, :n] = matrix
    whole[n, :n], whole[:n, n] = unknown_wins, 1 - unknown_wins
    return whole


class MatrixOracle(Oracle):
    """P(y ≻ y') = game.matrix[y, y'] for responses that are game.names, letter by letter.

    Any other response beats a known one with probability `unknown_wins` (0 ≤ … ≤ ½) and draws with
    others, so that P + Pᵀ = 1 always.
    """

    def __init__(self, game: Game, unknown_wins: float = 0.0) -> None:
        self.game, self.unknown_wins = game, unknown_wins
        self._matrix = with_unknown(game.matrix, unknown_wins)
        self._places = {name: i for i, name in enumerate(game.names)}

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the (len(left), len(right)) float64 entries of the game for each, in order."""
        for item in comparisons:
            left, right = (
                [self._places.get(text, len(self._places)) for text in side]
                for side in (item.left, item.right)
            )
            yield self._matrix[np.ix_(left, right)]

    def fingerprint(self) -> str:
        """A text of the matrix, the names and what unknown responses win."""
        return "matrix/1 " + json.dumps(
            [self.game.matrix.tolist(), self.game.names, self.unknown_wins]
        )


def make(options: MatrixConfig) -> Oracle:
    """The oracle of these options. Raises InputError where the game's file is no game."""
    try:
        game = load_game(options.game)
    except InputError as error:
        raise InputError(f"oracle.game {error}") from None
    return MatrixOracle(game, options.unknown_wins)
