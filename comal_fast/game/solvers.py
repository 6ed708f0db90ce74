"""COMAL with any prox operator as its inner solver, and the table of all solvers.

eta is a KL coefficient, the inverse of the step; tau, the weight of the KL to the reference, has
the same unit, 0 < tau ≤ eta.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from comal_fast.errors import InputError
from comal_fast.game.automatic import follow
from comal_fast.game.baselines import egpo, inpo, ipo, nash_md, omwu, sppo
from comal_fast.game.newer import apo, mnpo, nash_prox, onpo, rspo
from comal_fast.game.operators import OPERATORS, Step, prox_step, regularised_gap
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

METHODS = ("mirror", "optimistic", "extragradient")


def comal(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    prox: str = "inpo",
    method: str = "mirror",
    eta: float | str = DEFAULT_ETA,
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

    `method`, how an inner solve steps: "mirror", the prox step; "optimistic", the same with the win
    rates 2P(y ≻ π_k) − P(y ≻ π_{k−1}) (ONPO, arXiv 2502.16852, on the regularised game), stable
    near its limit for η > 0.62 on any game, where the mirror step needs η of the order 1/τ;
    "extragradient", from
    π_k with the win rates against where the prox step leads (EGPO, arXiv 2503.08942), two oracle
    calls a step.

    eta "auto": `comal_fast.game.automatic` chooses η, τ (from `tau` on) and when the reference
    moves, for outer × inner steps in all, a row every `inner`; optimistic steps.
    """
    if prox not in OPERATORS:
        raise InputError(f"prox = {prox!r}: it must be one of {', '.join(sorted(OPERATORS))}")
    if method not in METHODS:
        raise InputError(f"method = {method!r}: it must be one of {', '.join(METHODS)}")
    if method != "mirror" and not OPERATORS[prox].exact:
        raise InputError(f"method = {method!r}: prox {prox} takes no other win rates than P's own")
    if isinstance(eta, str):
        if eta != "auto":
            raise InputError(f"eta = {eta!r}: it must be a number, or 'auto'")
        check_options(tau=tau, outer=outer, inner=inner)
        for name, idle in (("prox", prox == "inpo"), ("method", method == "mirror"),
                           ("adaptive", not adaptive), ("c1", c1 is None)):  # fmt: skip
            if not idle:
                raise InputError(f"{name} has no effect with eta = 'auto'; leave it out")
        play = Play(matrix, start, on_step, every=inner)
        follow(play, tau, outer * inner)
        return play.trajectory()
    check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    if c1 is not None and not (math.isfinite(c1) and c1 > 0):
        raise InputError(f"c1 = {c1:g}: it must be a positive number")
    play = Play(matrix, start, on_step)
    log_policy = play.start
    before = gain = play.win(log_policy)
    constant = regularised_gap(log_policy, log_policy, gain, tau) if c1 is None else c1
    errors: list[Array] = []
    budgets: list[Array] = []
    for t in range(1, outer + 1):
        reference = log_policy
        budget = np.broadcast_to(constant / (9.0 * t**4), gain.shape[:-1])
        active = np.ones(gain.shape[:-1], dtype=np.bool_)
        for _ in range(inner):
            step = Step(log_policy, reference, gain, play.advantages, eta, tau)
            if method == "optimistic":
                step = replace(step, gain=2 * gain - before)
            elif method == "extragradient":
                step = replace(step, gain=play.win(prox_step(prox, step), active))
            moved = prox_step(prox, step)
            log_policy = play.move(np.where(active[..., None], moved, log_policy), active)
            before, gain = gain, play.win(log_policy, active)
            if adaptive:
                active = active & (regularised_gap(log_policy, reference, gain, tau) > budget)
                if not active.any():
                    break
        errors.append(regularised_gap(log_policy, reference, gain, tau))
        budgets.append(budget)
        play.row(log_policy)
    return play.trajectory(errors, budgets)


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
    "onpo": onpo,
    "nash-prox": nash_prox,
    "mnpo": mnpo,
    "rspo": rspo,
    "apo": apo,
}
