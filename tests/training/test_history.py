"""Methods that look past the last iterate: what stands in for it, and the step's length."""

import numpy as np
import pytest

from comal_fast.config import load_config
from comal_fast.game.families import random_game
from comal_fast.training.history import past, step, stretch


def config(tiny_run, *options: str):
    return load_config(tiny_run, [f"algorithm.{option}" for option in options])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - np.logaddexp.reduce(x))


def iterates(options, matrix: np.ndarray, start: np.ndarray, count: int) -> list[np.ndarray]:
    """log π_0 … of exact inpo steps on what `past` and `step` say; the reference is π_0."""
    found = [np.log(start)]
    eta, ratio = step(options)
    for t in range(1, count + 1):
        mean = sum(weight * found[k] for k, weight in past(options, t).items())
        gain = matrix @ np.exp(found[-1])
        found.append(np.log(softmax((1 - ratio) * mean + ratio * found[0] + gain / eta)))
    return found


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_onpo_is_optimistic_mirror_descent(tiny_run, ratio):
    """The paper's two sequences, with the pull of the reference in both: the same iterates."""
    rng = np.random.default_rng(5)
    game, start = random_game(5, 1), rng.dirichlet(np.ones(5))
    options = config(tiny_run, "method=onpo", "history=16", "eta=2.0", f"tau_eta_ratio={ratio}")
    ours = iterates(options, game.matrix, start, 15)
    base = now = reference = np.log(start)
    for found in ours[1:]:
        gain = game.matrix @ np.exp(now) / 2.0
        base = (1 - ratio) * base + ratio * reference + gain
        now = np.log(softmax((1 - ratio) * base + ratio * reference + gain))
        np.testing.assert_allclose(np.exp(found), np.exp(now), atol=1e-12)


@pytest.mark.parametrize("method", ["onpo", "mnpo"])
def test_they_stop_where_the_mirror_step_does(tiny_run, method):
    """The Nash policy of the regularised game, whatever history is kept."""
    game, start = random_game(4, 2), np.full(4, 0.25)
    common = ("eta=2.0", "tau_eta_ratio=0.25")
    plain = iterates(config(tiny_run, *common), game.matrix, start, 300)[-1]
    for kept in (2, 5):
        options = config(tiny_run, f"method={method}", f"history={kept}", *common)
        ours = iterates(options, game.matrix, start, 300)[-1]
        np.testing.assert_allclose(np.exp(ours), np.exp(plain), atol=1e-10)


def test_weights(tiny_run):
    assert past(config(tiny_run), 7) == {6: 1.0}
    assert past(config(tiny_run, "method=mnpo"), 2) == {1: 0.5, 0: 0.5}
    assert past(config(tiny_run, "method=apo", "momentum=0.25"), 3) == {2: 1.25, 1: -0.25}
    assert past(config(tiny_run, "method=heavy_ball"), 1) == {0: 1.0}
    assert config(tiny_run, "method=apo").algorithm.method == "heavy_ball"
    onpo = config(tiny_run, "method=onpo", "history=3", "tau_eta_ratio=0.0")
    assert past(onpo, 9) == {8: 0.5, 7: 0.25, 6: 0.25}
    assert past(onpo, 1) == {0: 1.0}
    assert (stretch(onpo), stretch(config(tiny_run, "method=mnpo"))) == (2.0, 1.0)
    dpo = config(tiny_run, "prox=dpo")
    assert past(dpo, 4) == {3: 1.0} and stretch(dpo) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=best"], "algorithm.method"),
        (["momentum=0.2"], "algorithm.momentum: method mirror ignores it; heavy_ball read it"),
        (
            ["method=apo", "history=2"],
            "algorithm.history: method heavy_ball ignores it; onpo and mnpo",
        ),
        (["method=onpo", "history=1"], "algorithm.history"),
        (["prox=dpo", "method=onpo"], "algorithm.method"),
    ],
)
def test_what_a_method_does_not_read(tiny_run, options, message):
    with pytest.raises(ValueError, match=message):
        config(tiny_run, *options)
