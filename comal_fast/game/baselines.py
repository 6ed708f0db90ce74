"""The algorithms that COMAL is compared with, each with its exact population update.

Symbols and options as in `comal_fast.game.solvers`; `...` is an optional batch of games. Those that
have no outer loop make a row every `every` steps.
"""

from __future__ import annotations

from itertools import repeat

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import wrightomega

from comal_fast.game.operators import Step, log_normalise, power, prox_step
from comal_fast.game.preference import Array
from comal_fast.game.trajectory import (
    DEFAULT_ETA,
    DEFAULT_TAU,
    OnStep,
    Play,
    Trajectory,
    check_options,
)


def inpo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    outer: int = 40,
    inner: int = 50,
    on_step: OnStep | None = None,
) -> Trajectory:
    """INPO with a static reference, the start: converges to the Nash of the *regularised* game.

    outer × inner mirror-descent steps, one row every `inner`. Arguments and errors as in `comal`.
    """
    check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    play = Play(matrix, start, on_step)
    log_policy = reference = play.start
    for _ in range(outer):
        for _ in repeat(None, inner):
            gain = play.win(log_policy)
            step = Step(log_policy, reference, gain, play.advantages, eta, tau)
            log_policy = play.move(prox_step("inpo", step))
        play.row(log_policy)
    return play.trajectory()


def ipo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Iterative IPO: π_{t+1} ∝ π_t exp(P(y ≻ π_t)/η), the reference being the last policy.

    Self-play without regularisation: it need not converge, and spirals outwards in a cyclic game.
    """
    check_options(eta=eta, outer=outer)
    play = Play(matrix, start, on_step, every)
    log_policy = play.start
    for _ in range(outer):
        log_policy = play.move(log_normalise(log_policy + play.win(log_policy) / eta))
        play.row(log_policy)
    return play.trajectory()


def sppo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Iterated SPPO (arXiv 2405.00675) with the loss of the paper, log Z = 0.

    Each step minimises E_{π_t} (log π/π_t − (P(y ≻ π_t) − ½)/η)² over policies exactly; with the
    exact log Z it would be iterative IPO.
    """
    check_options(eta=eta, outer=outer)
    play = Play(matrix, start, on_step, every)
    log_policy = play.start
    for _ in range(outer):
        log_policy = play.move(square_projection(log_policy, play.win(log_policy) / eta))
        play.row(log_policy)
    return play.trajectory()


def nash_md(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    tau: float = DEFAULT_TAU,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Nash-MD (arXiv 2312.00886): mirror descent against a geometric mixture with the reference.

    π̃_t ∝ π_t^{1−γ_t} π_ref^{γ_t}, π_{t+1} ∝ π̃_t exp(γ_t P(y ≻ π̃_t)/τ), the step being that of its
    convergence theorem, γ_t = 2/(t + 2), t = 0, 1, …: the last iterate reaches the Nash of the
    regularised game, KL = O(1/t). The reference is the start.
    """
    check_options(tau=tau, outer=outer)
    play = Play(matrix, start, on_step, every)
    log_policy = reference = play.start
    for t in range(outer):
        share = 2 / (t + 2)
        mixture = log_normalise(power(log_policy, 1 - share) + share * reference)
        gain = play.win(mixture)
        log_policy = play.move(log_normalise(mixture + share * gain / tau))
        play.row(log_policy)
    return play.trajectory()


def egpo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    outer: int = 1000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Extragradient preference optimisation (arXiv 2503.08942) on the regularised game.

    The INPO step from π_t, then the same step from π_t with the win rates against the point
    reached: two oracle calls. Linear convergence to the Nash of the regularised game where
    1/η ≤ 1/(τ + 2); the reference is the start.
    """
    check_options(eta=eta, tau=tau, outer=outer)
    play = Play(matrix, start, on_step, every)
    log_policy = reference = play.start
    for _ in range(outer):
        ahead = log_policy
        for _ in range(2):
            gain = play.win(ahead)
            step = Step(log_policy, reference, gain, play.advantages, eta, tau)
            ahead = prox_step("inpo", step)
        log_policy = play.move(ahead)
        play.row(log_policy)
    return play.trajectory()


def omwu(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Optimistic multiplicative weights: π_{t+1} ∝ π_t exp((2P(y ≻ π_t) − P(y ≻ π_{t−1}))/η).

    Daskalakis & Panageas, arXiv 1807.04252: the last iterate converges to a unique Nash policy for
    a small enough step, linearly (arXiv 2006.09517). π_{−1} is the start.
    """
    check_options(eta=eta, outer=outer)
    play = Play(matrix, start, on_step, every)
    log_policy = play.start
    before = None
    for _ in range(outer):
        gain = play.win(log_policy)
        guess = gain if before is None else 2 * gain - before
        log_policy, before = play.move(log_normalise(log_policy + guess / eta)), gain
        play.row(log_policy)
    return play.trajectory()


def square_projection(log_policy: Array, target: Array) -> Array:
    """argmin over policies p of Σ_y π(y) (log p(y)/π(y) − target(y))², as log p (..., n).

    Stationarity under Σp = 1 gives x + c·eˣ = target for x = log p/π, with the one c for which p is
    normalised; c ≥ 0 where E_π exp(target) ≥ 1, e.g. E_π target = 0 (Jensen), as win rates
    against π have it. Targets up to 1 may ask for a c a little below 0.
    """
    possible = np.isfinite(log_policy)
    solve = _near if np.where(possible, target, -np.inf).max() <= 1 else _far
    return log_normalise(log_policy + solve(np.where(possible, log_policy, -np.inf), target))


_LEAST_MULTIPLIER = -0.3  # 1 + c·eˣ stays above 0 where x ≤ 1


def _near(log_policy: Array, target: Array) -> Array:
    """x (..., n) by Newton's method on x and c together, from x = target and c = 0."""
    policy, x = np.exp(log_policy), target
    c = np.zeros((*target.shape[:-1], 1))
    for _ in range(50):
        tilt = np.exp(x)
        slope = 1 + c * tilt
        residual, weight = x + c * tilt - target, policy * tilt
        mass = weight.sum(axis=-1, keepdims=True) - 1
        step = (mass - (weight * residual / slope).sum(axis=-1, keepdims=True)) / (
            weight * tilt / slope
        ).sum(axis=-1, keepdims=True)
        c = np.maximum(c + step, _LEAST_MULTIPLIER)
        change = -(residual + tilt * step) / slope
        x = x + change
        if np.abs(change).max() <= 1e-14:
            break
    return x


def _far(log_policy: Array, target: Array) -> Array:
    """x (..., n) = target − W(c·e^target), Lambert's W, by Newton's method on log c from above."""
    highest = np.where(np.isfinite(log_policy), target, -np.inf).max(axis=-1)
    log_c = np.log1p(np.maximum(highest, 0.0))
    for _ in range(200):
        w = np.real(wrightomega(target + log_c[..., None]))
        x = target - w
        log_mass = _log_sum(log_policy + x)
        if np.abs(log_mass).max() <= 1e-15:
            break
        slope = _log_sum(log_policy + 2 * x - np.log1p(w)) - log_mass + log_c
        log_c = log_c + np.clip(log_mass * np.exp(np.minimum(-slope, 700.0)), -10.0, 10.0)
    return x


def _log_sum(terms: Array) -> Array:
    """log Σ exp over the last axis, (...)."""
    top = terms.max(axis=-1)
    total: Array = top + np.log(np.exp(terms - top[..., None]).sum(axis=-1))
    return total
