"""The exact sampled step against brute force over every ordered draw, and its known limits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from comal_fast.errors import InputError
from comal_fast.game.families import random_game
from comal_fast.game.monte_carlo import sample_limit
from comal_fast.game.operators import mirror_step
from comal_fast.game.pair_selection import (
    choose_pairs,
    label_matrix,
    mean_win_rates,
    target_margins,
)
from comal_fast.game.preference import PAPER_START, advantage, paper_game
from comal_fast.game.sampled import METHODS, find_limit, take_step
from comal_fast.game.sampled_noise import measure_noise
from comal_fast.game.sampled_step import Recipe, SampledStep, compositions, least_squares

PAPER = paper_game().matrix
CIRCLE = np.array([[0.5, 0.8, 0.2], [0.2, 0.5, 0.8], [0.8, 0.2, 0.5]])  # one of each: all tie
START = np.array(PAPER_START)


def brute_force(matrix: np.ndarray, policy: np.ndarray, recipe: Recipe) -> tuple:
    """W and M by going through all n^K ordered draws, as the trainer's `pair` phase would."""
    n = len(matrix)
    judged = label_matrix(matrix, recipe.labels, range(n))
    pairs, margins = np.zeros((2, n, n))
    for draw in product(range(n), repeat=recipe.samples):
        drawn = list(draw)
        chance = float(np.prod(policy[drawn]))
        chosen = choose_pairs(
            matrix[np.ix_(drawn, drawn)],
            recipe.strategy,
            texts=drawn,
            draws=recipe.labels != "hard" or recipe.target != "label",
            halves=recipe.target == "cross_fit",
        )
        said = target_margins(judged[np.ix_(drawn, drawn)], chosen, recipe.target)
        for (a, b), margin in zip(chosen, said, strict=True):
            pairs[drawn[a], drawn[b]] += chance
            margins[drawn[a], drawn[b]] += chance * margin
    return pairs, margins


@pytest.mark.parametrize("target", ["label", "win_rate", "cross_fit"])
@pytest.mark.parametrize("strategy", ["all", "best_worst", "best_second"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("samples", [3, 4, 5])
def test_law_is_that_of_every_ordered_draw(target, strategy, labels, samples) -> None:
    recipe = Recipe("inpo", strategy, labels, target, samples)
    for seed, matrix in enumerate([PAPER, CIRCLE, random_game(3, 5).matrix]):
        policy = np.random.default_rng(seed).dirichlet(np.ones(3))
        ours = SampledStep([matrix], recipe).pair_law(np.log(policy)[None])
        for one, other in zip(ours, brute_force(matrix, policy, recipe), strict=True):
            np.testing.assert_allclose(one[0], other, atol=1e-13)


def test_responses_are_weighed_as_in_every_ordered_draw() -> None:
    """sppo: the mean of (ŵ − ½)/η − pull − log Ẑ over the draws that hold a response."""
    policy, eta, samples = np.array([0.5, 0.2, 0.3]), 0.7, 4
    rng = np.random.default_rng(1)
    log_start, pull = rng.normal(size=(2, 1, 3))
    total, drawn_of = np.zeros(3), np.zeros(3)
    for draw in product(range(3), repeat=samples):
        drawn = list(draw)
        chance = float(np.prod(policy[drawn]))
        gain = (mean_win_rates(PAPER[np.ix_(drawn, drawn)]) - 0.5) / eta - pull[0, drawn]
        away = log_start[0, drawn] - np.log(policy[drawn])
        log_z = np.log(np.mean(np.exp(gain + away)))
        for i, response in enumerate(drawn):
            total[response] += chance * (gain[i] - log_z)
            drawn_of[response] += chance
    exact = SampledStep([PAPER], Recipe("sppo", target="win_rate", samples=samples))
    found = exact.response_targets(np.log(policy)[None], log_start, pull, eta)
    np.testing.assert_allclose(found[0], total / drawn_of, atol=1e-12)


def test_all_pairs_with_soft_labels_are_the_mirror_step() -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        n = int(rng.integers(2, 7))
        matrix = random_game(n, seed).matrix
        policy, reference = (np.log(rng.dirichlet(np.ones(n))) for _ in range(2))
        exact = SampledStep([matrix], Recipe(samples=int(rng.integers(2, 6))))
        ours = take_step(exact, [policy[None]], reference[None], "mirror", 1.5, 0.4)
        wanted = mirror_step(policy, reference, advantage(matrix), 1.5, 0.4)
        np.testing.assert_allclose(ours[0], wanted, atol=1e-12)


def test_games_of_unlike_sizes_are_played_together() -> None:
    games = [random_game(n, n).matrix for n in (2, 5, 3)]
    starts = [np.full(len(game), 1 / len(game)) for game in games]
    options = {"eta": 1.0, "tau": 0.2, "outer": 4, "inner": 3}
    for recipe in (Recipe(), Recipe("sppo"), Recipe("dpo"), Recipe("inpo", "best_worst")):
        together = find_limit(games, starts, recipe, **options)
        for g, (game, start) in enumerate(zip(games, starts, strict=True)):
            alone = find_limit([game], [start], recipe, **options)
            np.testing.assert_allclose(
                together.policies[g, : len(game)], alone.policies[0], atol=1e-12
            )


@pytest.mark.parametrize(
    ("recipe", "gap"),
    [
        (Recipe(), 0.0),
        (Recipe(labels="sampled"), 0.0),
        (Recipe(labels="hard"), 0.06667),
        (Recipe("inpo", "best_worst", "hard"), 0.06667),
        (Recipe("inpo", "best_second", "hard"), 0.06667),
        (Recipe("inpo", "best_worst"), 0.02534),
        (Recipe("inpo", "best_worst", samples=6), 0.42806),
        *((Recipe("inpo", "best_worst", "soft", "cross_fit", k), 0.0) for k in (4, 5, 6, 7, 8)),
        *((Recipe("inpo", "best_second", "soft", "cross_fit", k), 0.0) for k in (3, 8)),
        (Recipe("inpo", "best_worst", "soft", "win_rate", 4), 0.01634),
        (Recipe("inpo", "best_worst", "soft", "win_rate", 6), 0.0149),
        (Recipe("inpo", "best_worst", "soft", "win_rate", 8), 0.02829),
        (Recipe("rebel", "best_worst", "soft", "cross_fit"), 0.0),
        (Recipe("rebel", "all", "soft", "win_rate"), 0.0),
        (Recipe("dro", target="win_rate"), 0.0),
    ],
    ids=str,
)
def test_limits_on_the_papers_game(recipe: Recipe, gap: float) -> None:
    found = find_limit([PAPER], [START], recipe, eta=1.0, tau=0.1, outer=60, inner=30)
    assert found.gap[0] == pytest.approx(gap, abs=1e-4)
    if gap == 0:
        np.testing.assert_allclose(found.policies[0], [4 / 11, 3 / 11, 4 / 11], atol=1e-4)


@pytest.mark.parametrize("prox", ["ipo", "dpo"])
def test_a_step_from_the_reference_ends_at_nash_too(prox: str) -> None:
    found = find_limit([PAPER], [START], Recipe(prox), eta=0.5, tau=0.1, outer=150, inner=10)
    assert found.gap[0] <= 1e-4
    majority = Recipe(prox, "all", "hard")
    found = find_limit([PAPER], [START], majority, eta=0.5, tau=0.1, outer=150, inner=10)
    assert found.gap[0] == pytest.approx(0.0667, abs=1e-3) and found.majority_gap[0] <= 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stands_still_at_nash(method: str) -> None:
    options = {"eta": 2.0, "tau": 0.2, "outer": 50, "inner": 30, "method": method}
    for recipe in (Recipe(), Recipe("inpo", "best_worst", "soft", "cross_fit", 5), Recipe("dro")):
        recipe = Recipe("dro", target="win_rate") if recipe.prox == "dro" else recipe
        assert find_limit([PAPER], [START], recipe, **options).gap[0] <= 1e-3


def test_the_defaults_end_at_nash_on_random_games() -> None:
    games = [random_game(n, 40 + n + k).matrix for n in (3, 4, 5, 6) for k in (0, 10, 20)]
    starts = [np.full(len(game), 1 / len(game)) for game in games]
    for recipe in (Recipe(samples=5), Recipe("inpo", "best_worst", "soft", "cross_fit", 4)):
        found = find_limit(games, starts, recipe, eta=1.0, tau=0.1, outer=60, inner=30)
        assert np.median(found.gap) <= 0.005


def test_seeded_draws_agree_with_enumeration() -> None:
    options = {"method": "mirror", "eta": 1.0, "tau": 0.2, "outer": 8, "inner": 4}
    recipe = Recipe("inpo", "best_worst", "soft", "label", 3)
    exact = find_limit([PAPER], [START], recipe, **options)
    drawn = sample_limit(PAPER, START, recipe, **options, seed=3)
    assert abs(drawn.gap - exact.gap[0]) <= 5 * drawn.gap_error + 0.01
    assert 0 < drawn.gap_error < 0.05
    again = sample_limit(PAPER, START, recipe, **options, seed=3)
    assert again.gap == drawn.gap


def test_rare_responses_keep_their_digits() -> None:
    """The step is one of differences: a response of probability 1e-60 moves as the formula says."""
    policy = np.array([1e-60, 0.6, 0.4 - 1e-60])
    exact = SampledStep([PAPER], Recipe(samples=4))
    found = take_step(exact, [np.log(policy)[None]], np.log(policy)[None], "mirror", 1.0, 0.1)
    wanted = mirror_step(np.log(policy), np.log(policy), advantage(PAPER), 1.0, 0.1)
    np.testing.assert_allclose(found[0], wanted, atol=1e-10)


def test_least_squares_is_the_minimiser() -> None:
    rng = np.random.default_rng(2)
    pairs, margins = rng.random((2, 1, 5, 5))
    u = least_squares(pairs, margins)[0]

    def loss(u: np.ndarray) -> float:
        apart = u[:, None] - u[None]
        return float((pairs[0] * apart**2 - 2 * margins[0] * apart).sum())

    for direction in rng.normal(size=(20, 5)):
        assert loss(u + 1e-3 * direction) > loss(u)


def test_compositions_are_all_of_them() -> None:
    found = compositions(3, 4)
    assert len(found) == 15 == len({tuple(row) for row in found.tolist()})
    assert (found.sum(axis=1) == 4).all() and (found >= 0).all()


def test_noise_is_that_of_independent_prompts() -> None:
    """All pairs of two samples: û has the noise that a sum over the four draws says."""
    policy = np.array([0.3, 0.7])
    matrix = np.array([[0.5, 0.8], [0.2, 0.5]])
    found = measure_noise(matrix, policy, Recipe(samples=2), 20_000, 0)
    share = 2 * 0.3 * 0.7  # of draws with two texts: û is its mean over this share there, else 0
    assert found.relative == pytest.approx(1 / share - 1, rel=0.05)
    assert found.pairs == pytest.approx(share, rel=0.05)
    sampled = measure_noise(matrix, policy, Recipe(samples=2, labels="sampled"), 20_000, 0)
    assert sampled.relative > found.relative


@pytest.mark.parametrize(
    ("recipe", "method", "message"),
    [
        (Recipe("dpo", target="cross_fit"), "mirror", "dpo takes label alone"),
        (Recipe("ipo"), "onpo", "ipo steps from the reference"),
        (Recipe(target="cross_fit", samples=2), "mirror", "at least 3"),
        (Recipe(samples=1), "mirror", "at least 2"),
    ],
)
def test_what_the_trainer_would_refuse(recipe: Recipe, method: str, message: str) -> None:
    options = {"eta": 1.0, "tau": 0.1, "outer": 1, "inner": 1}
    with pytest.raises(InputError, match=message):
        find_limit([PAPER], [START], recipe, method=method, **options)


def test_sampled_labels_are_draws_from_p() -> None:
    texts = [0, 1, 2, 0]
    matrix = PAPER[np.ix_(texts, texts)]
    drawn = np.stack([label_matrix(matrix, "sampled", texts, f"{i}") for i in range(4000)])
    assert (drawn + drawn.swapaxes(1, 2) == 1).all()
    assert (drawn[:, 0, 3] == 0.5).all() and set(np.unique(drawn)) == {0.0, 0.5, 1.0}
    different = np.not_equal.outer(texts, texts)
    error = np.abs(drawn.mean(axis=0) - matrix)[different]
    assert error.max() <= 5 * 0.5 / np.sqrt(4000)
    once, again = (label_matrix(matrix, "sampled", texts, "7 labels 2 3") for _ in range(2))
    assert (once == again).all()


def test_ranks_are_among_distinct_texts() -> None:
    texts = [0, 0, 1, 2, 2]
    order = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]])
    matrix = order[np.ix_(texts, texts)]
    assert choose_pairs(matrix, "best_second", texts=texts) == [(0, 2)]
    assert choose_pairs(matrix, "best_worst", texts=texts)[0][0] == 0
    same = np.full((3, 3), 0.5)
    assert choose_pairs(same, "best_second", texts=[4, 4, 4], draws=True) == []
