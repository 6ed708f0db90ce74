"""All algorithms with equal numbers of oracle calls, and what became of them.

The verdicts are measured on the duality gaps and policies of a trajectory's rows; see `verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comal_fast.game.operators import OPERATORS
from comal_fast.game.preference import Array
from comal_fast.game.solvers import SOLVERS
from comal_fast.game.trajectory import OnStep, Trajectory

CONVERGED = 1e-6  # duality gap
FALLING, SPIRAL = 0.9, 0.999  # of the value half-way, at the end
FIRST_TAU = 0.05  # of COMAL auto, in units of the payoff range
MOVING = 0.01  # total variation from the last policy, somewhere in the last quarter
VERDICTS = ("converges", "falling", "stops short", "cycles")
CRITERIA = (
    f"converges: last gap ≤ {CONVERGED:g}. falling: not yet, but the gap, or KL to Nash, is in all "
    "of the last quarter of the run below the whole quarter before, and at the end "
    f"< {FALLING:g} of that half-way. stops short: neither, and no policy of the last quarter is "
    f"more than {MOVING:g} (total variation) from the last one. Of those that still move, falling: "
    f"KL goes down in that way (< {SPIRAL:g}), a slow spiral inwards; cycles: the rest."
)


LABELS = (
    "optimistic, extragrad.: COMAL with that inner solver, η/3 and τ/10. auto: it chooses both. "
    "Nash-Prox: η/10, its gradient being scaled by π."
)
FIXED_LABELS = "prox, opt.: COMAL with method mirror or optimistic, at η/τ."


@dataclass(frozen=True)
class Entry:
    """An algorithm with its options, under the name that tables give it."""

    label: str
    solver: str
    options: dict[str, Any]

    def play(self, matrix: Array, start: Array, on_step: OnStep | None = None) -> Trajectory:
        """Run it on a game (n, n), or on G games (G, n, n)."""
        return SOLVERS[self.solver](matrix, start, **self.options, on_step=on_step)


def lineup(
    eta: float, tau: float, outer: int, inner: int, *, every: int = 1, raw: bool = True
) -> list[Entry]:
    """Every algorithm, with outer × inner oracle calls each.

    COMAL with each prox operator; the rest with a static reference or none. `every`: the baselines
    without an outer loop make a row each so many steps. raw: with `dpo-raw`, by far the slowest.
    """
    calls = outer * inner
    step = {"eta": eta, "outer": calls, "every": every}
    loops = {"outer": outer, "inner": inner}
    operators = [name for name in sorted(OPERATORS) if raw or OPERATORS[name].exact]
    pulls = sorted({tau / 10, tau, min(10 * tau, eta)})
    half = {"outer": max(1, calls // 2), "every": max(1, every // 2)}
    pull = {"eta": eta, "tau": tau}
    free = {"eta": eta / 3, "tau": min(tau / 10, eta / 3)}
    twice = {"outer": outer, "inner": max(1, inner // 2)}
    gradient = {"eta": max(eta / 10, tau), "tau": tau}
    return [
        *(Entry(f"COMAL {name}", "comal", {"prox": name, **pull, **loops}) for name in operators),
        Entry("extragrad. η/3", "comal", {"method": "extragradient", **free, **twice}),
        Entry("optimistic η/3", "comal", {"method": "optimistic", **free, **loops}),
        Entry("COMAL auto", "comal", {"eta": "auto", "tau": FIRST_TAU, **loops}),
        Entry("Nash-Prox η/10", "nash-prox", {**gradient, **loops}),
        *(Entry(f"INPO τ={t:g}", "inpo", {"eta": eta, "tau": t, **loops}) for t in pulls),
        Entry("iterative IPO", "ipo", step),
        Entry("SPPO", "sppo", step),
        Entry(f"Nash-MD τ={tau:g}", "nash-md", {"tau": tau, "outer": calls, "every": every}),
        Entry(f"EGPO τ={tau:g}", "egpo", {"eta": eta, "tau": tau, **half}),
        Entry("OMWU", "omwu", step),
        Entry("OMWU η/3", "omwu", {**step, "eta": eta / 3}),
        Entry("ONPO", "onpo", step),
        Entry("APO α=0.3", "apo", {**step, "momentum": 0.3}),
        Entry(f"MNPO τ={tau:g}", "mnpo", {**pull, "outer": calls, "every": every}),
        Entry(f"RSPO τ={tau:g}", "rspo", {**pull, "forward": tau, **loops}),
    ]


def fixed_settings(outer: int, inner: int) -> list[Entry]:
    """COMAL auto first, then COMAL at 19 fixed settings: what there is to choose from by hand."""
    loops = {"outer": outer, "inner": inner}
    grid = [
        *(("mirror", eta, tau) for eta in (0.3, 1.0, 3.0) for tau in (0.1, 0.03, 0.01)),
        *(("optimistic", eta, tau) for eta in (0.3, 1.0) for tau in (0.03, 0.01, 0.003, 0.001)),
        *(("optimistic", 0.5, tau) for tau in (0.01, 0.003)),
    ]
    names = {"mirror": "prox", "optimistic": "opt."}
    return [
        Entry("COMAL auto", "comal", {"eta": "auto", "tau": FIRST_TAU, **loops}),
        *(
            Entry(f"{names[m]} {e:g}/{t:g}", "comal", {"method": m, "eta": e, "tau": t, **loops})
            for m, e, t in grid
        ),
    ]


def verdict(gap: Array, kl: Array, policies: Array) -> str:
    """One of VERDICTS for a trajectory: gap, KL to Nash (T,), policies (T, n), rows evenly spaced.

    The criteria are CRITERIA, in that order; a KL that is not known is NaN.
    """
    if gap[-1] <= CONVERGED:
        return "converges"
    half, last = len(gap) // 2, 3 * len(gap) // 4

    def falls(curve: Array, share: float) -> bool:
        lower = last > half and curve[last:].max() < curve[half:last].min()
        return bool(lower and curve[-1] < share * curve[half])

    if falls(gap, FALLING) or falls(kl, FALLING):
        return "falling"
    if np.abs(policies[last:] - policies[-1]).sum(axis=1).max() / 2 <= MOVING:
        return "stops short"
    return "falling" if falls(kl, SPIRAL) else "cycles"


def calls_to_converge(gap: Array, calls: NDArray[np.int64]) -> int | None:
    """Oracle calls after which the gap (T,) is ≤ 1e-6 and stays so; None if it is not."""
    above = np.flatnonzero(gap > CONVERGED)
    first = above[-1] + 1 if len(above) else 0
    return int(calls[first]) if first < len(gap) else None


def same_curves(policies: list[Array], tolerance: float = 1e-9) -> list[list[int]]:
    """Groups of trajectories (T, n) that agree in every row within `tolerance`, first come first.

    The exact prox operators take the same step, so that their lines would hide each other.
    """
    groups: list[list[int]] = []
    for i, one in enumerate(policies):
        for group in groups:
            other = policies[group[0]]
            if one.shape == other.shape and np.abs(one - other).max() <= tolerance:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
