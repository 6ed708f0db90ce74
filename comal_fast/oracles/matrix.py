"""The `matrix` oracle: a given preference matrix over known responses, one for all prompts or each
its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from comal_fast.config.oracle import MatrixConfig
from comal_fast.data.conversation import Messages, last_user_text
from comal_fast.errors import InputError
from comal_fast.game.preference import Array, Game, load_game
from comal_fast.game.prompted import SUFFIX, PromptGame, load_games
from comal_fast.oracles.base import Comparison, Oracle
from comal_fast.oracles.checked import short


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

    `game`: of all prompts, or by what the user said last. Any other response beats a known one with
    probability `unknown_wins` (0 ≤ … ≤ ½) and draws with others, so that P + Pᵀ = 1 always.
    """

    def __init__(self, game: Game | Mapping[str, Game], unknown_wins: float = 0.0) -> None:
        self.game, self.unknown_wins = game, unknown_wins
        by_prompt = game if isinstance(game, Mapping) else {"": game}
        self._known = {
            prompt: (with_unknown(g.matrix, unknown_wins), {n: i for i, n in enumerate(g.names)})
            for prompt, g in by_prompt.items()
        }

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the (len(left), len(right)) float64 entries of the game for each, in order.

        Raises InputError for a prompt that has no game.
        """
        for item in comparisons:
            matrix, places = self._of(item.messages)
            left, right = (
                [places.get(text, len(places)) for text in side] for side in (item.left, item.right)
            )
            yield matrix[np.ix_(left, right)]

    def _of(self, messages: Messages) -> tuple[Array, dict[str, int]]:
        prompt = last_user_text(messages) if isinstance(self.game, Mapping) else ""
        if prompt not in self._known:
            raise InputError(f"oracle.game: no game for the prompt {short(prompt)}")
        return self._known[prompt]

    def fingerprint(self) -> str:
        """A text of the matrices, the names and what unknown responses win."""
        if isinstance(self.game, Mapping):
            games = [[p, g.matrix.tolist(), g.names] for p, g in sorted(self.game.items())]
            return "matrix/1 " + json.dumps([games, self.unknown_wins])
        return "matrix/1 " + json.dumps(
            [self.game.matrix.tolist(), self.game.names, self.unknown_wins]
        )


def read(options: MatrixConfig) -> Game | dict[str, PromptGame]:
    """The game of these options, or the games by prompt. InputError where the file holds none."""
    try:
        return (load_games if options.game.endswith(SUFFIX) else load_game)(options.game)
    except InputError as error:
        raise InputError(f"oracle.game {error}") from None


def make(options: MatrixConfig) -> Oracle:
    """The oracle of these options. Raises InputError where the game's file is no game."""
    found = read(options)
    games = found if isinstance(found, Game) else {p: each.game for p, each in found.items()}
    return MatrixOracle(games, options.unknown_wins)
