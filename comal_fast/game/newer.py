"""Solvers that came after COMAL's paper, each with its exact population update.

Symbols and options as in `comal_fast.game.solvers`; `...` is an optional batch of games. The
extragradient step of EGPO is in `comal_fast.game.baselines`, and an inner solver of COMAL too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import wrightomega

from comal_fast.game.operators import log_normalise, power
from comal_fast.game.preference import Array
from comal_fast.game.trajectory import (
    DEFAULT_ETA,
    DEFAULT_TAU,
    OnStep,
    Play,
    Trajectory,
    check_options,
    check_range,
)

_NEWTON_STEPS = 100


def onpo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Optimistic Nash policy optimisation (arXiv 2502.16852): optimistic mirror descent, self-play.

    Two sequences: π_t ∝ π̂_t exp(P(y ≻ π_{t−1})/η), which predicts that the win rates stay, and
    π̂_{t+1} ∝ π̂_t exp(P(y ≻ π_t)/η). The duality gap of the mean policy is O(1/T). With the
    entropy as its mirror map π_t is the iterate of `omwu`, step for step.
    """
    check_options(eta=eta, outer=outer)
    play = Play(matrix, start, on_step, every)
    base = log_policy = play.start
    for _ in range(outer):
        gain = play.win(log_policy)
        base = log_normalise(base + gain / eta)
        log_policy = play.move(log_normalise(base + gain / eta))
        play.row(log_policy)
    return play.trajectory()


def nash_prox(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    outer: int = 40,
    inner: int = 50,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Proximal point with self-play policy gradients inside (arXiv 2505.19731): COMAL's own shape.

    Over softmax logits θ the gradient of J_τ(π_θ, π_k; π_ref), whose population form is the one of
    online IPO: θ ← θ + π (r − ⟨π, r⟩)/η with r = P(y ≻ π) − τ log(π/π_ref). Unlike the prox step
    it is scaled by π, so that what is unlikely moves slowly. After `inner` steps π_ref ← π.
    """
    check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    play = Play(matrix, start, on_step)
    log_policy = play.start
    possible = np.isfinite(log_policy)
    for _ in range(outer):
        reference = np.where(possible, log_policy, 0.0)
        for _ in range(inner):
            ratio = np.where(possible, log_policy, 0.0) - reference
            reward = play.win(log_policy) - tau * ratio
            policy = np.exp(log_policy)
            centred = reward - (policy * reward).sum(axis=-1, keepdims=True)
            log_policy = play.move(log_normalise(log_policy + policy * centred / eta))
        play.row(log_policy)
    return play.trajectory()


def mnpo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    opponents: int = 3,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Multiplayer Nash preference optimisation (arXiv 2509.23102) against the last iterates.

    π_{t+1} ∝ π_ref^{τ/η} Π_j (π_{t−j}^{1−τ/η} exp(P(y ≻ π_{t−j})/η))^{λ_j}: geometric means of the
    last `opponents` iterates and of the steps from them, λ_j equal. One opponent is INPO with a
    static reference; the Nash of the regularised game stands still for any number. One oracle call
    a step, as win rates against older iterates are known.
    """
    check_options(eta=eta, tau=tau, outer=outer)
    check_range("opponents", opponents, 1, 1000)
    play = Play(matrix, start, on_step, every)
    log_policy = reference = play.start
    ratio = tau / eta
    pull = power(reference, ratio)
    steps: list[Array] = []
    for _ in range(outer):
        steps.append(power(log_policy, 1 - ratio) + play.win(log_policy) / eta)
        steps = steps[-opponents:]
        mean: Array = sum(steps[1:], steps[0]) / len(steps)
        log_policy = play.move(log_normalise(pull + mean))
        play.row(log_policy)
    return play.trajectory()


def rspo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    forward: float = DEFAULT_TAU,
    outer: int = 40,
    inner: int = 50,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Regularised self-play (arXiv 2503.00030): forward KL to the reference beside the reverse one.

    π_{k+1} = argmax_p ⟨P(y ≻ π_k), p⟩ − τ KL(p‖π_ref) − `forward` KL(π_ref‖p) − (η − τ) KL(p‖π_k),
    exactly (`forward_step`); `forward` = 0 is INPO. The reference is the start: it converges to
    the Nash of the game regularised by both. One row every `inner` steps.
    """
    check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    check_range("forward", forward, 0, 1e100)
    play = Play(matrix, start, on_step)
    log_policy = reference = play.start
    ratio = tau / eta
    pull = power(reference, ratio)
    for _ in range(outer):
        for _ in range(inner):
            target = pull + power(log_policy, 1 - ratio) + play.win(log_policy) / eta
            log_policy = play.move(forward_step(target, reference, forward / eta))
        play.row(log_policy)
    return play.trajectory()


def apo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    momentum: float = 0.3,
    outer: int = 2000,
    every: int = 1,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Accelerated preference optimisation (arXiv 2410.06293): Nesterov extrapolation of iterates.

    π̂_{t+1} ∝ π_t exp(P(y ≻ π_t)/η), π_{t+1} ∝ π̂_{t+1} (π̂_{t+1}/π̂_t)^α, α = `momentum` in [0, 1).
    Where win rates do not depend on the opponent but for a constant, the steps grow to 1/(1 − α)
    of plain ones; in a cyclic game momentum pushes outwards.
    """
    check_options(eta=eta, outer=outer)
    check_range("momentum", momentum, 0, 1, below=True)
    play = Play(matrix, start, on_step, every)
    log_policy = before = play.start
    possible = np.isfinite(play.start)
    for _ in range(outer):
        plain = log_normalise(log_policy + play.win(log_policy) / eta)
        ahead = np.subtract(plain, before, out=np.zeros_like(plain), where=possible)
        log_policy, before = play.move(log_normalise(plain + momentum * ahead)), plain
        play.row(log_policy)
    return play.trajectory()


def forward_step(target: Array, log_reference: Array, weight: float) -> Array:
    """log p (..., n) with log p = target − ν + weight · π_ref/p, ν such that p is normalised.

    The stationarity of ⟨target, p⟩ + entropy − weight · KL(π_ref‖p); target need not be
    normalised. log p = target − ν + ω(log weight + log π_ref − target + ν) with Wright's ω;
    Newton's method on ν, in which log Σp is convex and falls.
    """
    target = log_normalise(target)
    if weight == 0:
        return target
    possible = np.isfinite(target)
    target = np.where(possible, target, 0.0)
    pull = np.where(possible, np.log(weight) + log_reference - target, 0.0)
    nu = np.zeros((*target.shape[:-1], 1))  # Σp ≥ 1 here, so that Newton rises to the root
    for _ in range(_NEWTON_STEPS):
        omega = np.real(wrightomega(pull + nu))
        p = np.where(possible, np.exp(target - nu + omega), 0.0)
        total = p.sum(axis=-1, keepdims=True)
        change = np.log(total) * total / (p / (1 + omega)).sum(axis=-1, keepdims=True)
        if np.abs(change).max() <= 1e-14:
            break
        nu = nu + change
    found = np.where(possible, target - nu + omega, -np.inf)
    return log_normalise(found)
