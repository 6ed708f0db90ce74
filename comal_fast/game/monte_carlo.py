"""The sampled step where draws are too many to enumerate: seeded ones, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from comal_fast.game.nash import duality_gap
from comal_fast.game.pair_selection import (
    choose_pairs,
    label_matrix,
    mean_win_rates,
    target_margins,
)
from comal_fast.game.preference import Array
from comal_fast.game.sampled import check_recipe, walk
from comal_fast.game.sampled_step import Recipe, expected_labels, mean_targets

PROMPTS = 400  # draws of K samples in a step
REPEATS = 6  # whole runs with seeds of their own, over which the standard errors are taken


@dataclass(frozen=True)
class Estimate:
    """A limit estimated by repeated runs: means over them, standard errors of the gaps.

    policy (n,): the mean over runs of the mean policy of each run's last quarter. moved: total
    variation of the last outer step, which noise keeps above 0.
    """

    policy: Array
    gap: float
    gap_error: float
    majority_gap: float
    majority_gap_error: float
    moved: float


class DrawnStep:
    """The step's expectation over `PROMPTS` seeded draws of K samples, for one game."""

    def __init__(self, matrix: Array, recipe: Recipe, generator: np.random.Generator) -> None:
        self.matrix, self.recipe, self.generator = matrix, recipe, generator
        self.judged = expected_labels(matrix, recipe.labels)

    def _draws(self, log_policy: Array) -> np.ndarray:
        policy = np.exp(log_policy[0])
        shape = (PROMPTS, self.recipe.samples)
        return self.generator.choice(len(policy), shape, p=policy / policy.sum())

    def pair_law(self, log_policy: Array) -> tuple[Array, Array]:
        """Return W and M (1, n, n): mean counts and targets of pairs over the draws."""
        recipe = self.recipe
        pairs, margins = np.zeros((2, 1, *self.matrix.shape))
        for drawn in self._draws(log_policy):
            chosen = choose_pairs(
                self.matrix[np.ix_(drawn, drawn)],
                recipe.strategy,
                texts=drawn.tolist(),
                draws=recipe.labels != "hard" or recipe.target != "label",
                halves=recipe.target == "cross_fit",
            )
            said = target_margins(self.judged[np.ix_(drawn, drawn)], chosen, recipe.target)
            for (a, b), margin in zip(chosen, said, strict=True):
                pairs[0, drawn[a], drawn[b]] += 1 / PROMPTS
                margins[0, drawn[a], drawn[b]] += margin / PROMPTS
        return pairs, margins

    def response_targets(
        self, log_policy: Array, log_start: Array, pull: Array, eta: float
    ) -> Array:
        """Return (1, n) the mean target of each response; 0 for one that no draw holds."""
        draws = self._draws(log_policy)
        counts = np.stack([np.bincount(drawn, minlength=len(self.matrix)) for drawn in draws])
        wins = np.zeros((1, *counts.shape))
        for number, drawn in enumerate(draws):
            wins[0, number, drawn] = mean_win_rates(self.matrix[np.ix_(drawn, drawn)])
        chances = np.full((1, PROMPTS), 1 / PROMPTS)
        away = np.where(np.isfinite(log_policy), log_start - log_policy, 0.0)
        return mean_targets(counts, chances, wins, away, pull, eta, self.recipe.log_z)


def sample_limit(
    matrix: Array,
    start: Array,
    recipe: Recipe,
    *,
    method: str,
    eta: float,
    tau: float,
    outer: int,
    inner: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> Estimate:
    """Iterate steps of `PROMPTS` draws each; options as in `comal_fast.game.sampled.find_limit`.

    `advance` is called after each outer step of each of `REPEATS` runs.
    """
    check_recipe(recipe, method)
    majority = label_matrix(matrix, "hard", range(len(matrix)))
    with np.errstate(divide="ignore"):
        log_start = np.log(start)[None]
    means, moves = [], []
    for repeat in range(REPEATS):
        expected = DrawnStep(matrix, recipe, np.random.default_rng([seed, repeat]))
        ends = []
        for reference, log_policy in walk(expected, log_start, method, eta, tau, outer, inner):
            ends.append(np.exp(log_policy[0]))
            moved = np.abs(ends[-1] - np.exp(reference[0])).sum() / 2
            advance()
        means.append(np.mean(ends[-max(1, outer // 4) :], axis=0))
        moves.append(moved)
    gaps = np.array([[float(duality_gap(game, p)) for p in means] for game in (matrix, majority)])
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(REPEATS)
    (gap, majority_gap), (gap_error, majority_error) = gaps.mean(axis=1), errors
    return Estimate(
        np.mean(means, axis=0),
        float(gap),
        float(gap_error),
        float(majority_gap),
        float(majority_error),
        float(np.mean(moves)),
    )
