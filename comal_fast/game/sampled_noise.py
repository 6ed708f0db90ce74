"""How noisy one prompt's step is, and how many responses it trains on, for a recipe of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from comal_fast.game.pair_selection import choose_pairs, label_matrix, target_margins
from comal_fast.game.preference import Array
from comal_fast.game.sampled_step import Recipe, SampledStep, least_squares, spread_push


@dataclass(frozen=True)
class Noise:
    """Of one prompt's K samples, from seeded draws.

    relative: E‖û − u‖²/‖u‖², in the norm Σ π(y) x(y)², where û is the step that one prompt's pairs
    ask for and u its mean: about as many prompts make the error as large as the step.
    responses: mean number of distinct responses that are trained on. pairs: mean number of pairs.
    """

    relative: float
    responses: float
    pairs: float


def measure_noise(matrix: Array, policy: Array, recipe: Recipe, draws: int, seed: int) -> Noise:
    """Draw `draws` prompts' samples from `policy` (n,) and let the trainer's selection pair them.

    û solves the normal equations with the expected Laplacian and one prompt's own targets, so that
    recipes of different pairs are compared by the same quantity, the step.
    """
    generator = np.random.default_rng(seed)
    n, exact = len(matrix), SampledStep([matrix], recipe)
    with np.errstate(divide="ignore"):
        weights, _ = exact.pair_law(np.log(policy)[None])
    push, responses, pairs = np.zeros((draws, n)), 0, 0
    keeps_ties = recipe.labels != "hard" or recipe.target != "label"
    for number in range(draws):
        drawn = generator.choice(n, recipe.samples, p=policy)
        block = matrix[np.ix_(drawn, drawn)]
        judged = label_matrix(block, recipe.labels, drawn.tolist(), f"{seed} {number}")
        chosen = choose_pairs(
            block,
            recipe.strategy,
            texts=drawn.tolist(),
            draws=keeps_ties,
            halves=recipe.target == "cross_fit",
        )
        margins = target_margins(judged, chosen, recipe.target)
        for (a, b), margin in zip(chosen, margins, strict=True):
            push[number, drawn[a]] += margin
            push[number, drawn[b]] -= margin
        responses += len({int(drawn[i]) for pair in chosen for i in pair})
        pairs += len(chosen)
    steps = least_squares(np.broadcast_to(weights[0], (draws, n, n)), spread_push(push))
    steps = steps - (steps @ policy)[:, None]
    mean = steps.mean(axis=0)
    spread = ((steps - mean) ** 2 @ policy).mean()
    return Noise(float(spread / (mean**2 @ policy)), responses / draws, pairs / draws)
