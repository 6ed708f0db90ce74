"""Where the trainer's algorithm ends on known games: the limit of its exact steps.

An iteration takes K samples of π_t, chooses and labels pairs, and minimises the loss; after every
`inner` iterations the reference moves, as `algorithm.ref_update_interval` has it. Each step is the
population step of `comal_fast.game.sampled_step`, so that what is seen is the algorithm's own fixed
point, without noise of sampling or optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from comal_fast.errors import InputError
from comal_fast.game.baselines import square_projection
from comal_fast.game.nash import duality_gap
from comal_fast.game.operators import log_normalise
from comal_fast.game.pair_selection import label_matrix
from comal_fast.game.past_iterates import iterate_weights, step_multiplier
from comal_fast.game.preference import Array
from comal_fast.game.sampled_step import (
    LOWEST,
    Recipe,
    SampledStep,
    least_squares,
    logistic,
)

METHODS = ("mirror", "onpo", "mnpo", "heavy_ball")
PROXES = ("inpo", "ipo", "dpo", "sppo", "dro", "rebel")
ANCHORED = ("ipo", "dpo")  # step from the reference: they take no method and no τ
SINGLE = ("sppo", "dro")  # of single responses: nothing is paired, soft win rates
HISTORY, MOMENTUM = 3, 0.3  # the trainer's defaults
SETTLED = 1e-4  # total variation that the last outer step moved, of a run that has arrived


@dataclass(frozen=True)
class Limit:
    """The policies that a recipe ends with on G games of up to n responses.

    policies (G, n), 0 for a response that a game lacks; gap, majority_gap (G,): duality gaps in P
    and in the game of the majority; moved (G,): total variation of the last outer step.
    """

    recipe: Recipe
    method: str
    policies: Array
    gap: Array
    majority_gap: Array
    moved: Array


def check_recipe(recipe: Recipe, method: str) -> None:
    """Raise InputError for what the trainer would refuse, or what has no effect."""
    if method != "mirror" and recipe.prox in ANCHORED:
        raise InputError(f"--method {method}: prox {recipe.prox} steps from the reference")
    if recipe.prox == "dpo" and recipe.target != "label":
        raise InputError(
            f"--target {recipe.target}: prox dpo takes label alone, its loss is not a square"
        )
    least = 3 if recipe.target == "cross_fit" else 2
    if recipe.samples < least:
        raise InputError(f"--samples {recipe.samples}: it must be at least {least}")


def find_limit(
    matrices: Sequence[Array],
    starts: Sequence[Array],
    recipe: Recipe,
    *,
    method: str = "mirror",
    eta: float,
    tau: float,
    outer: int,
    inner: int,
    advance: Callable[[], object] = lambda: None,
) -> Limit:
    """Iterate the exact step and return where it ends.

    Args:
        matrices: (n_g, n_g) P of each game; starts: (n_g,) first policy and reference.
        recipe: What is sampled, chosen, labelled and minimised. dpo's β is 4η.
        method: One of METHODS: how the inner solver steps.
        eta, tau: KL coefficients, 0 < tau ≤ eta.
        outer, inner: Moves of the reference, and iterations between them.
        advance: Called after each outer step.
    """
    check_recipe(recipe, method)
    exact = SampledStep(list(matrices), recipe)
    n = exact.judged.shape[-1]
    log_policy = np.full((len(matrices), n), -np.inf)
    for g, start in enumerate(starts):
        with np.errstate(divide="ignore"):
            log_policy[g, : len(start)] = np.log(start)
    for before, now in walk(exact, log_policy, method, eta, tau, outer, inner):
        policies, moved = np.exp(now), np.abs(np.exp(now) - np.exp(before)).sum(axis=1) / 2
        advance()
    gaps, majority_gaps = [], []
    for matrix, policy in zip(matrices, policies, strict=True):
        own = policy[: len(matrix)]
        majority = label_matrix(matrix, "hard", range(len(matrix)))
        gaps.append(float(duality_gap(matrix, own)))
        majority_gaps.append(float(duality_gap(majority, own)))
    return Limit(recipe, method, policies, np.array(gaps), np.array(majority_gaps), moved)


class Expectation(Protocol):
    """The expected loss of a recipe at a policy: exact, or over seeded draws."""

    recipe: Recipe

    def pair_law(self, log_policy: Array) -> tuple[Array, Array]:
        """Return W and M (G, n, n) of `comal_fast.game.sampled_step`."""

    def response_targets(
        self, log_policy: Array, log_start: Array, pull: Array, eta: float
    ) -> Array:
        """Return (G, n) the mean target of each response."""


def walk(
    expected: Expectation,
    log_policy: Array,  # (G, n)
    method: str,
    eta: float,
    tau: float,
    outer: int,
    inner: int,
) -> Iterator[tuple[Array, Array]]:
    """Yield (log reference, log policy), each (G, n), at the end of every outer step."""
    iterates = [log_policy]
    for _ in range(outer):
        reference = iterates[-1]
        for _ in range(inner):
            moved = take_step(expected, iterates, reference, method, eta, tau)
            iterates = [*iterates[-HISTORY:], moved]
        yield reference, iterates[-1]


def take_step(
    expected: Expectation,
    iterates: list[Array],
    reference: Array,
    method: str,
    eta: float,
    tau: float,
) -> Array:
    """Return log π_{t+1} (G, n) from the last iterates, the newest at the end."""
    recipe, log_policy = expected.recipe, iterates[-1]
    if recipe.prox in ANCHORED:
        pairs, margins = expected.pair_law(log_policy)
        if recipe.prox == "dpo":
            return _kept(reference + logistic(pairs, margins, 4 * eta))
        return _kept(reference + least_squares(pairs, margins) / eta)
    ratio = tau / eta
    weights = iterate_weights(method, len(iterates), ratio, HISTORY, MOMENTUM)
    possible = np.isfinite(log_policy)
    known = [np.where(possible, iterate, 0.0) for iterate in iterates]
    log_start = sum((w * known[t] for t, w in weights.items()), np.zeros_like(log_policy))
    longer = step_multiplier(method, ratio)
    pull = ratio * longer * (log_start - np.where(possible, reference, 0.0))
    if recipe.prox == "sppo":
        target = expected.response_targets(log_policy, log_start, pull, eta / longer)
        away = np.where(possible, log_start - known[-1], 0.0)
        return _kept(square_projection(log_policy, target + away))
    pairs, margins = expected.pair_law(log_policy)
    gained = least_squares(pairs, margins) * longer / eta
    return _kept(np.where(possible, log_start - pull + gained, -np.inf))


def _kept(logits: Array) -> Array:
    """Return the normalised policy, no possible response below `LOWEST`."""
    normal = log_normalise(logits)
    return np.where(np.isfinite(normal), np.maximum(normal, LOWEST), -np.inf)
