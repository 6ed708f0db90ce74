"""What a solver goes through: its oracle, the calls to it, the rows of its trajectory, its options.

Every array may carry a batch axis in front: `matrix` (G, n, n) plays G games of one size at once,
and `...` below stands for (G,) or for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comal_fast.errors import InputError
from comal_fast.game.preference import Array, advantage, check_matrix, check_start

DEFAULT_ETA = 1 / 0.3
DEFAULT_TAU = 0.1
ETA_RANGE = (1e-100, 1e100)  # 1/eta and its multiples stay far from overflow

OnStep = Callable[[Array], None]  # called with log π (..., n) after every policy update
Solver = Callable[..., "Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """One row per outer step, the start first; T = outer + 1 rows.

    log_policies (T, ..., n) float64; steps and calls (T, ...) int64: policy updates, and
    evaluations of P(· ≻ π), done so far. Where a regularised game is solved to a measured accuracy,
    inner_error and budget (T − 1, ...) float64: see `comal_fast.game.solvers.comal`.
    """

    log_policies: Array
    steps: NDArray[np.int64]
    calls: NDArray[np.int64]
    inner_error: Array | None = None
    budget: Array | None = None

    @property
    def policies(self) -> Array:
        """π_t, (T, ..., n) float64."""
        return np.exp(self.log_policies)


class Play:
    """One run of a solver: an oracle that counts its calls, and a growing trajectory.

    advantages (..., n, n) float64: P − ½, exactly antisymmetric; start (..., n): its logarithm.
    every: only each so-many-th row is kept, and the last one.
    """

    def __init__(
        self,
        matrix: ArrayLike,
        start: ArrayLike | None,
        on_step: OnStep | None,
        every: int = 1,
    ) -> None:
        p = np.asarray(matrix)
        if p.ndim == 3:
            checked = np.stack([check_matrix(one, f"matrix {g}") for g, one in enumerate(p)])
            starts = [None] * len(p) if start is None else list(np.asarray(start))
            policy = np.stack(
                [check_start(s, p.shape[1], f"start {g}") for g, s in enumerate(starts)]
            )
        else:
            checked = check_matrix(matrix)
            policy = check_start(start, len(checked))
        self.advantages = advantage(checked)
        with np.errstate(divide="ignore"):  # log 0 = -inf is meant: a zero stays a zero
            self.start: Array = np.log(policy)
        self._on_step, self._every, self._skipped = on_step, every, 0
        batch = self.start.shape[:-1]
        self._steps, self._calls = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self._rows = [(self.start, self._steps, self._calls)]

    def win(self, log_policy: Array, active: NDArray[np.bool_] | bool = True) -> Array:
        """P(y ≻ π) − ½ for every y, (..., n): one oracle call in the games that are `active`."""
        self._calls = self._calls + active
        gain: Array = (self.advantages @ np.exp(log_policy)[..., None])[..., 0]
        return gain

    def move(self, log_policy: Array, active: NDArray[np.bool_] | bool = True) -> Array:
        """Count a policy update; returns its argument."""
        self._steps = self._steps + active
        if self._on_step is not None:
            self._on_step(log_policy)
        return log_policy

    def row(self, log_policy: Array) -> None:
        """Record the end of an outer step."""
        if self._skipped:  # the row before was only kept for being the last
            self._rows.pop()
        self._rows.append((log_policy, self._steps, self._calls))
        self._skipped = (self._skipped + 1) % self._every

    def trajectory(
        self, inner_error: list[Array] | None = None, budget: list[Array] | None = None
    ) -> Trajectory:
        """The trajectory of everything recorded so far."""
        policies, steps, calls = (np.array(column) for column in zip(*self._rows, strict=True))
        return Trajectory(
            policies,
            steps,
            calls,
            None if inner_error is None else np.array(inner_error),
            None if budget is None else np.array(budget),
        )


def check_options(
    *,
    eta: float | None = None,
    tau: float | None = None,
    outer: int | None = None,
    inner: int | None = None,
) -> None:
    """InputError for an option out of range: eta > 0, 0 < tau (≤ eta), outer and inner ≥ 1."""
    low, high = ETA_RANGE
    if eta is not None and not (math.isfinite(eta) and low <= eta <= high):
        raise InputError(f"eta = {eta:g}: it must be a positive number, {low:g} to {high:g}")
    if tau is not None:
        limit = "" if eta is None else f" and at most eta = {eta:g}"
        if not (math.isfinite(tau) and low <= tau <= high):
            raise InputError(f"tau = {tau:g}: it must be positive{limit}")
        if eta is not None and tau > eta:
            raise InputError(f"tau = {tau:g} is greater than eta = {eta:g}; it must be in (0, eta]")
    for name, count in (("outer", outer), ("inner", inner)):
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise InputError(f"{name} = {count!r}: it must be a whole number, at least 1")
        if count < 1:
            raise InputError(f"{name} = {count}: it must be at least 1")


def check_range(name: str, value: float, low: float, high: float, *, below: bool = False) -> None:
    """InputError unless low ≤ value ≤ high (`below`: value < high)."""
    if not (math.isfinite(value) and low <= value and (value < high if below else value <= high)):
        limit = f"below {high:g}" if below else f"to {high:g}"
        raise InputError(f"{name} = {value:g}: it must be a number from {low:g} {limit}")
