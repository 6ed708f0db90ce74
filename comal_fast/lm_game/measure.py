"""What a run did to a model that plays known games: exact probabilities, not samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comal_fast.config import Config
from comal_fast.config.oracle import MatrixConfig
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.game.nash import duality_gap, nash_policy
from comal_fast.game.preference import Array, Game, check_start
from comal_fast.game.prompted import PromptGame
from comal_fast.lm_game.model import game_sequences
from comal_fast.model.logps import response_logps
from comal_fast.oracles.matrix import read, with_unknown
from comal_fast.store.files import write_json
from comal_fast.system.terminal import progress


@dataclass(frozen=True)
class Measured:
    """Iterates π_0 … π_T of one run on all of its prompts.

    policies (T+1, prompts, m+1) float64: the exact probability of each response, the last column
    being all other strings; of a game with fewer than m responses the columns between are 0.
    nash (prompts, m) likewise; held_out (prompts,) bool; seconds: of the run's phases;
    trained_tokens: that went through the model in optimiser steps, over the whole run.
    """

    name: str
    prox: str
    prompts: tuple[str, ...]
    games: tuple[PromptGame, ...]
    nash: Array
    policies: Array
    held_out: np.ndarray
    gap: Array  # (T+1, prompts) duality gap, other strings included
    seconds: float
    trained_tokens: int

    @property
    def total_variation(self) -> Array:
        """(T+1, prompts) distance of each policy from Nash, to which other strings are foreign."""
        foreign = np.zeros((len(self.nash), 1))
        away = np.abs(self.policies - np.concatenate([self.nash, foreign], axis=1))
        result: Array = away.sum(axis=-1) / 2
        return result

    @property
    def leak(self) -> Array:
        """(T+1, prompts) probability of strings that are no response of the game."""
        result: Array = self.policies[..., -1]
        return result

    @property
    def one(self) -> Game | None:
        """The game, where all prompts have the same."""
        first = self.games[0].game
        return first if all(played.game is first for played in self.games) else None

    def to_json(self) -> dict[str, Any]:
        """What lm_game.json holds: per iterate the mean over prompts, the worst, the held-out."""
        tv = self.total_variation
        rows: list[dict[str, Any]] = [
            {
                "iterate": t,
                "total_variation": float(tv[t].mean()),
                "total_variation_worst": float(tv[t].max()),
                "total_variation_held_out": float(tv[t, self.held_out].mean()),
                "duality_gap": float(self.gap[t].mean()),
                "leak": float(self.leak[t].mean()),
            }
            for t in range(len(tv))
        ]
        found: dict[str, Any] = {
            "prox": self.prox,
            "prompts": {"train": int((~self.held_out).sum()), "held_out": int(self.held_out.sum())},
            "seconds": self.seconds,
            "trained_tokens": self.trained_tokens,
            "iterates": rows,
        }
        if (game := self.one) is not None:
            for t, row in enumerate(rows):
                row["policy"] = self.policies[t].mean(axis=0).tolist()
            return {"names": [*game.names, "other"], "nash": self.nash[0].tolist(), **found}
        return found


def measure(config: Config) -> Measured:
    """Measure every iterate that is in the run directory, and write RUN_DIR/lm_game.json.

    InputError where the oracle is no game, or the run has not trained anything.
    """
    oracle, game_of = known_games(config)
    context = Context(config)
    trained = context.directory.trained()
    last = max((t for t in trained if t <= config.algorithm.iterations), default=0)
    if not last and context.directory.result() is None:  # 0: rolled back to where it began
        raise InputError(f"{context.directory}: no trained model in it; `comal-fast run` first")
    visited = (p for t in range(1, last + 1) for p in context.training_prompts(t))
    training = list({tuple(p.ids): p for p in visited}.values())
    prompts = [*training, *context.held_out_prompts()]
    games = [game_of(p.text) for p in prompts]
    names = [played.game.names for played in games]
    sequences = game_sequences(context.tokenizer, [p.ids for p in prompts], names)
    here = _places(names)
    policies = np.zeros((last + 1, len(prompts), here.shape[1] + 1))
    with progress(f"measure {context.directory.path.name}", last + 1, "policies") as advance:
        for t in range(last + 1):
            logps = response_logps(
                context.policies.load(t),
                sequences,
                max_tokens=config.training.max_tokens_per_microbatch,
                attn_implementation=config.model.attn_implementation,
                backend=config.training.backend,
            )
            policies[t, :, :-1][here] = np.exp(logps)
            policies[t, :, -1] = 1 - policies[t].sum(axis=1)
            advance()
    rows = context.directory.rows()
    measured = Measured(
        name=context.directory.path.name,
        prox=config.algorithm.prox,
        prompts=tuple(p.text for p in prompts),
        games=tuple(games),
        nash=_nash(games, here),
        policies=policies,
        held_out=np.arange(len(prompts)) >= len(training),
        gap=_gaps(games, policies, oracle.unknown_wins),
        seconds=float(sum(row["perf/seconds"] for row in rows)),
        trained_tokens=sum(int(row["perf/tokens"]) for row in rows if row["phase"] == "train"),
    )
    write_json(context.directory.lm_game, measured.to_json())
    return measured


def _places(names: Sequence[Sequence[str]]) -> np.ndarray:
    """(prompts, m) bool: where a prompt's game has a response."""
    sizes = np.array([len(some) for some in names])
    result: np.ndarray = np.arange(sizes.max()) < sizes[:, None]
    return result


def _nash(games: Sequence[PromptGame], here: np.ndarray) -> Array:
    solved = {id(played.game): nash_policy(played.game.matrix) for played in games}
    nash = np.zeros(here.shape)
    nash[here] = np.concatenate([solved[id(played.game)] for played in games])
    return nash


def _gaps(games: Sequence[PromptGame], policies: Array, unknown_wins: float) -> Array:
    """(T+1, prompts): a game's prompts at once."""
    gaps = np.empty(policies.shape[:2])
    prompts: dict[int, list[int]] = {}
    for i, played in enumerate(games):
        prompts.setdefault(id(played.game), []).append(i)
    for some in prompts.values():
        matrix = games[some[0]].game.matrix
        known, other = policies[:, some, : len(matrix)], policies[:, some, -1:]
        whole = np.concatenate([known, other], axis=-1)
        gaps[:, some] = duality_gap(with_unknown(matrix, unknown_wins), whole)
    return gaps


def known_games(config: Config) -> tuple[MatrixConfig, Callable[[str], PromptGame]]:
    """The options of the oracle `matrix`, and what finds the game of a prompt's text.

    InputError for any other oracle, and where a prompt has no game.
    """
    if not isinstance(config.oracle, MatrixConfig):
        raise InputError(f"oracle.name: {config.oracle.name}; lm-game needs oracle matrix")
    oracle = config.oracle
    games = read(oracle)
    if isinstance(games, Game):
        played = PromptGame(games, check_start(None, len(games.names)), "")
        return oracle, lambda prompt: played

    def found(prompt: str) -> PromptGame:
        if prompt not in games:
            raise InputError(f"oracle.game {oracle.game}: no game for the prompt {prompt!r}")
        return games[prompt]

    return oracle, found
