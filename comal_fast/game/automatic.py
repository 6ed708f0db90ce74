"""COMAL that chooses its own step, regularisation and reference moves, from what it measures.

Optimistic prox steps solve the regularised game. Three quantities, all seen anyway, decide:

- η, from the game's curvature along the path: L² = Var_{π'}(P(· ≻ π') − P(· ≻ π)) / 2KL(π'‖π) for
  a step π → π'. Near a point, an optimistic step is a linear recursion that is stable for
  η > √3 L (its root of largest modulus leaves the unit circle there); η = 2L, and it falls by at
  most 3 % a step, so that one flat step does not undo the rest.
- when the reference moves: once the error of the inner solve is small beside how far it has moved,
  KL(π ‖ best response) ≤ 0.3 KL(π‖π_ref), both times 2τ the gap and the move in units of the game:
  the relative criterion of inexact proximal point methods. Like c₁/(9t⁴) it asks for ever more
  accuracy, but at the pace of the iterates.
- τ, from how long that took: halved after fewer than 200 steps, doubled after more than 800. A
  small τ lets the reference move far at once and makes the inner game hard; in between the cost
  is flat.
"""

from __future__ import annotations

import numpy as np

from comal_fast.game.nash import kl_divergence
from comal_fast.game.operators import log_normalise, power
from comal_fast.game.preference import Array
from comal_fast.game.trajectory import Play

CURVATURES = 2.0  # η over L
DECAY = 0.97  # of η, the least per step
ACCURACY = 0.3  # of an inner solve, relative to the move
FEW, MANY = 200, 800  # steps of an inner solve
LEAST = 1e-6  # τ, in units of the payoff range: a pure Nash policy is ever faster to reach without
_FLAT = 1e-30  # KL of a step, under which it measures nothing


def follow(play: Play, tau: float, steps: int) -> None:
    """Take `steps` optimistic steps in every game of `play`, a row after each of them.

    tau: of the first inner solve, in units of the payoff range 2 max|P − ½|, which also is the
    first η. Games of a batch have their own η, τ and reference.
    """
    largest = 2 * np.abs(play.advantages).max(axis=(-1, -2))[..., None]
    scale: Array = np.where(largest > 0, largest, 1.0)
    eta, weight = scale, np.minimum(tau, 1.0) * scale
    log_policy = reference = play.start
    before = gain = play.win(log_policy)
    taken = np.zeros(eta.shape, dtype=np.int64)
    for _ in range(steps):
        eta = np.maximum(eta, weight)
        pull = power(reference, weight / eta) + power(log_policy, 1 - weight / eta)
        moved = play.move(log_normalise(pull + (2 * gain - before) / eta))
        before, gain = gain, play.win(moved)
        eta = np.maximum(CURVATURES * _curvature(log_policy, moved, gain - before), DECAY * eta)
        log_policy = moved
        taken = taken + 1
        play.row(log_policy)
        policy = np.exp(log_policy)
        response = log_normalise(reference + gain / weight)
        error, apart = kl_divergence(policy, response), kl_divergence(policy, reference)
        solved = (error <= ACCURACY * apart)[..., None]
        slower = np.where(taken < FEW, 0.5, np.where(taken > MANY, 2.0, 1.0))
        weight = np.where(solved, np.clip(weight * slower, LEAST * scale, scale), weight)
        reference = np.where(solved, log_policy, reference)
        taken = np.where(solved, 0, taken)


def _curvature(old: Array, new: Array, change: Array) -> Array:
    """L (..., 1) of the step old → new (log-policies), over which win rates changed so."""
    policy = np.exp(new)
    mean = (policy * change).sum(axis=-1, keepdims=True)
    variance = (policy * (change - mean) ** 2).sum(axis=-1, keepdims=True)
    apart = 2 * kl_divergence(policy, old)[..., None]
    found: Array = np.sqrt(np.where(apart > _FLAT, variance / np.maximum(apart, _FLAT), 0.0))
    return found
