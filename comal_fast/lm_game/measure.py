"""What a run did to a model that plays a known game: exact probabilities, not samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from comal_fast.config import Config
from comal_fast.config.oracle import MatrixConfig
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.game.nash import duality_gap, nash_policy
from comal_fast.game.preference import Array, Game, load_game
from comal_fast.lm_game.model import game_sequences
from comal_fast.model.logps import response_logps
from comal_fast.oracles.matrix import with_unknown
from comal_fast.store.files import write_json
from comal_fast.system.terminal import progress


@dataclass(frozen=True)
class Measured:
    """Iterates π_0 … π_T of one run on all of its prompts.

    policies (T+1, prompts, n+1) float64: the exact probability of each response, the last column
    being all other strings; held_out (prompts,) bool; nash (n,); seconds: of the run's phases.
    """

    name: str
    prox: str
    game: Game
    nash: Array
    policies: Array
    held_out: np.ndarray
    gap: Array  # (T+1, prompts) duality gap, other strings included
    seconds: float

    @property
    def total_variation(self) -> Array:
        """(T+1, prompts) distance of each policy from Nash, to which other strings are foreign."""
        away = np.abs(self.policies - np.append(self.nash, 0.0))
        result: Array = away.sum(axis=-1) / 2
        return result

    def to_json(self) -> dict[str, Any]:
        """What lm_game.json holds: per iterate the mean over prompts, the worst, the held-out."""
        tv = self.total_variation
        rows = [
            {
                "iterate": t,
                "policy": self.policies[t].mean(axis=0).tolist(),
                "total_variation": float(tv[t].mean()),
                "total_variation_worst": float(tv[t].max()),
                "total_variation_held_out": float(tv[t, self.held_out].mean()),
                "duality_gap": float(self.gap[t].mean()),
            }
            for t in range(len(tv))
        ]
        return {
            "prox": self.prox,
            "names": [*self.game.names, "other"],
            "nash": self.nash.tolist(),
            "prompts": {"train": int((~self.held_out).sum()), "held_out": int(self.held_out.sum())},
            "seconds": self.seconds,
            "iterates": rows,
        }


def measure(config: Config) -> Measured:
    """Measure every iterate that is in the run directory, and write RUN_DIR/lm_game.json.

    InputError where the oracle is no game, or the run has not trained anything.
    """
    oracle, game = known_game(config)
    context = Context(config)
    trained = context.directory.trained()
    last = max((t for t in trained if t <= config.algorithm.iterations), default=0)
    if not last and context.directory.result() is None:  # 0: rolled back to where it began
        raise InputError(f"{context.directory}: no trained model in it; `comal-fast run` first")
    visited = (p.ids for t in range(1, last + 1) for p in context.training_prompts(t))
    training = list(dict.fromkeys(map(tuple, visited)))
    prompts = [*training, *(p.ids for p in context.held_out_prompts())]
    sequences = game_sequences(context.tokenizer, prompts, game.names)
    policies = np.empty((last + 1, len(prompts), len(game.names) + 1))
    with progress(f"measure {context.directory.path.name}", last + 1, "policies") as advance:
        for t in range(last + 1):
            logps = response_logps(
                context.policies.load(t),
                sequences,
                max_tokens=config.training.max_tokens_per_microbatch,
                attn_implementation=config.model.attn_implementation,
                backend=config.training.backend,
            )
            known = np.exp(logps).reshape(len(prompts), len(game.names))
            policies[t, :, :-1], policies[t, :, -1] = known, 1 - known.sum(axis=1)
            advance()
    measured = Measured(
        name=context.directory.path.name,
        prox=config.algorithm.prox,
        game=game,
        nash=nash_policy(game.matrix),
        policies=policies,
        held_out=np.arange(len(prompts)) >= len(training),
        gap=duality_gap(with_unknown(game.matrix, oracle.unknown_wins), policies),
        seconds=float(sum(row["perf/seconds"] for row in context.directory.rows())),
    )
    write_json(context.directory.lm_game, measured.to_json())
    return measured


def known_game(config: Config) -> tuple[MatrixConfig, Game]:
    """The options of the oracle `matrix`, and its game. InputError for any other oracle."""
    if not isinstance(config.oracle, MatrixConfig):
        raise InputError(f"oracle.name: {config.oracle.name}; lm-game needs oracle matrix")
    try:
        return config.oracle, load_game(config.oracle.game)
    except InputError as error:
        raise InputError(f"oracle.game {error}") from None
