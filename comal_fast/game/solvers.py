"""COMAL with any prox operator as its inner solver, and the table of all solvers.

eta is a KL coefficient, the inverse of the step; tau, the weight of the KL to the reference, has
the same unit, 0 < tau ≤ eta.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from comal_fast.errors import InputError
from comal_fast.game.baselines import egpo, inpo, ipo, nash_md, omwu, sppo
from comal_fast.game.nash import kl_divergence
from comal_fast.game.operators import OPERATORS, Step, log_normalise, prox_step
from comal_fast.game.preference import Array
from comal_fast.game.trajectory import (
    DEFAULT_ETA,
    DEFAULT_TAU,
    OnStep,
    Play,
    Solver,
    Trajectory,
    check_options,
)


def comal(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    prox: str = "inpo",
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    outer: int = 40,
    inner: int = 50,
    adaptive: bool = False,
    c1: float | None = None,
    on_step: OnStep | None = None,
) -> Trajectory:
    """COMAL (arXiv 2410.23223v2): solve the regularised game, move the reference to it, repeat.

    `outer` reference moves, each after `inner` prox steps of OPERATORS[prox] from the reference;
    the last iterate converges to the Nash policy. matrix (..., n, n), start (..., n) (None:
    uniform). InputError for a bad matrix, start or option.

    The trajectory holds the inner error of each outer step t = 1, 2, … (`regularised_gap`) and
    its budget c1/(9t⁴), which the convergence theorem for inexact solves asks for. c1 None: the
    regularised gap at the start, so that solve 1 must shrink its error ninefold. `adaptive`: a
    solve stops once it is within budget; `inner` is then the most steps that it may take.
    """
    check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    if prox not in OPERATORS:
        raise InputError(f"prox = {prox!r}: it must be one of {', '.join(sorted(OPERATORS))}")
    if c1 is not None and not (math.isfinite(c1) and c1 > 0):
        raise InputError(f"c1 = {c1:g}: it must be a positive number")
    play = Play(matrix, start, on_step)
    log_policy = play.start
    gain = play.win(log_policy)
    constant = regularised_gap(log_policy, log_policy, gain, tau) if c1 is None else c1
    errors: list[Array] = []
    budgets: list[Array] = []
    for t in range(1, outer + 1):
        reference = log_policy
        budget = np.broadcast_to(constant / (9.0 * t**4), gain.shape[:-1])
        active = np.ones(gain.shape[:-1], dtype=np.bool_)
        for _ in range(inner):
            step = Step(log_policy, reference, gain, play.advantages, eta, tau)
            moved = prox_step(prox, step)
            log_policy = play.move(np.where(active[..., None], moved, log_policy), active)
            gain = play.win(log_policy, active)
            if adaptive:
                active = active & (regularised_gap(log_policy, reference, gain, tau) > budget)
                if not active.any():
                    break
        errors.append(regularised_gap(log_policy, reference, gain, tau))
        budgets.append(budget)
        play.row(log_policy)
    return play.trajectory(errors, budgets)


def regularised_gap(log_policy: Array, log_reference: Array, gain: Array, tau: float) -> Array:
    """Duality gap of π in the regularised game, 2·(max_p J_τ(p, π) − ½), shape (...).

    The best response is p ∝ π_ref exp(P(y ≻ π)/τ), and the gap 2τ KL(π ‖ p): summed so, it keeps
    its digits near 0. It bounds the distance to the game's Nash policy: gap ≥ 2τ KL(π ‖ π*_τ).
    gain (..., n): P(y ≻ π) − ½.
    """
    response = log_normalise(log_reference + gain / tau)
    gap: Array = 2 * tau * kl_divergence(np.exp(log_policy), response)
    return gap


# A solver takes (matrix, start, *, options, on_step); its keyword arguments are the options that
# it supports and their defaults, which the command line reads from the signature.
SOLVERS: dict[str, Solver] = {
    "comal": comal,
    "inpo": inpo,
    "ipo": ipo,
    "sppo": sppo,
    "nash-md": nash_md,
    "egpo": egpo,
    "omwu": omwu,
}
