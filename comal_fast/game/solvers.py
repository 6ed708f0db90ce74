"""Solvers of a preference game by mirror descent in log space: COMAL, INPO and iterative IPO.

eta is a KL coefficient, the inverse of the step; tau, the weight of the KL to the reference, has
the same unit, 0 < tau ≤ eta.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comal_fast.game.preference import Array, advantage, check_matrix, check_start

DEFAULT_ETA = 1 / 0.3
DEFAULT_TAU = 0.1
ETA_RANGE = (1e-100, 1e100)  # 1/eta and its multiples stay far from overflow

OnStep = Callable[[Array], None]  # called with log π (n,) after every mirror-descent step


@dataclass(frozen=True)
class Trajectory:
    """What a solver went through, one row per outer step, the start first.

    log_policies (outer + 1, n) float64; steps (outer + 1,) int64: mirror-descent steps done so far.
    """

    log_policies: Array
    steps: NDArray[np.int64]

    @property
    def policies(self) -> Array:
        """π_t, (outer + 1, n) float64."""
        return np.exp(self.log_policies)


Solver = Callable[..., Trajectory]


def mirror_step(
    log_policy: Array, log_reference: Array, advantages: Array, eta: float, tau: float
) -> Array:
    """One step π_{k+1} ∝ π_k^{1−τ/η} π_ref^{τ/η} exp(P(y ≻ π_k)/η), as log-probabilities (n,).

    `advantages` (n, n) is P − ½: the constant drops out. The INPO closed form, i.e. the prox step
    of the game regularised towards π_ref; tau = 0 is plain multiplicative weights.
    """
    ratio = tau / eta
    gain = advantages @ np.exp(log_policy) / eta
    logits = _power(log_policy, 1 - ratio) + _power(log_reference, ratio) + gain
    top = logits.max()
    normalised: Array = logits - (top + np.log(np.exp(logits - top).sum()))
    return normalised


def comal(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    tau: float = DEFAULT_TAU,
    outer: int = 40,
    inner: int = 50,
    on_step: OnStep | None = None,
) -> Trajectory:
    """COMAL (arXiv 2410.23223v2): solve the regularised game, move the reference to it, repeat.

    `outer` reference moves, each after `inner` mirror-descent steps from the reference; the last
    iterate converges to the Nash policy. matrix (n, n), start (n,) (None: uniform).
    ValueError for a bad matrix, start or option.
    """
    a, log_policy = _prepare(matrix, start)
    _check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    rows = [log_policy]
    for _ in range(outer):
        reference = log_policy
        for _ in repeat(None, inner):
            log_policy = mirror_step(log_policy, reference, a, eta, tau)
            if on_step is not None:
                on_step(log_policy)
        rows.append(log_policy)
    return _trajectory(rows, inner)


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
    a, reference = _prepare(matrix, start)
    _check_options(eta=eta, tau=tau, outer=outer, inner=inner)
    log_policy, rows = reference, [reference]
    for _ in range(outer):
        for _ in repeat(None, inner):
            log_policy = mirror_step(log_policy, reference, a, eta, tau)
            if on_step is not None:
                on_step(log_policy)
        rows.append(log_policy)
    return _trajectory(rows, inner)


def ipo(
    matrix: ArrayLike,
    start: ArrayLike | None = None,
    *,
    eta: float = DEFAULT_ETA,
    outer: int = 2000,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Iterative IPO: π_{t+1} ∝ π_t exp(P(y ≻ π_t)/η), the reference being the last policy.

    Self-play without regularisation: it need not converge, and spirals outwards in a cyclic game.
    """
    a, log_policy = _prepare(matrix, start)
    _check_options(eta=eta, outer=outer)
    rows = [log_policy]
    for _ in range(outer):
        log_policy = mirror_step(log_policy, log_policy, a, eta, 0.0)
        if on_step is not None:
            on_step(log_policy)
        rows.append(log_policy)
    return _trajectory(rows, 1)


# A solver takes (matrix, start, *, options, on_step); its keyword arguments are the options that
# it supports and their defaults, which the command line reads from the signature.
SOLVERS: dict[str, Solver] = {"comal": comal, "inpo": inpo, "ipo": ipo}


def _power(log_policy: Array, exponent: float) -> Array:
    """log π^exponent, where 0⁰ = 1 (0 · log 0 would be NaN)."""
    return np.zeros_like(log_policy) if exponent == 0 else exponent * log_policy


def _prepare(matrix: ArrayLike, start: ArrayLike | None) -> tuple[Array, Array]:
    p = check_matrix(matrix)
    policy = check_start(start, len(p))
    with np.errstate(divide="ignore"):  # log 0 = -inf is meant: a zero stays a zero
        return advantage(p), np.log(policy)


def _trajectory(rows: list[Array], steps_per_row: int) -> Trajectory:
    steps = np.arange(len(rows), dtype=np.int64) * steps_per_row
    return Trajectory(np.array(rows), steps)


def _check_options(
    *, eta: float, outer: int, tau: float | None = None, inner: int | None = None
) -> None:
    low, high = ETA_RANGE
    if not (math.isfinite(eta) and low <= eta <= high):
        raise ValueError(f"eta = {eta:g}: it must be a positive number, {low:g} to {high:g}")
    if tau is not None:
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau = {tau:g}: it must be positive and at most eta = {eta:g}")
        if tau > eta:
            raise ValueError(f"tau = {tau:g} is greater than eta = {eta:g}; it must be in (0, eta]")
    for name, count in (("outer", outer), ("inner", inner)):
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"{name} = {count!r}: it must be a whole number, at least 1")
        if count < 1:
            raise ValueError(f"{name} = {count}: it must be at least 1")
