"""Results of a game: one record per solver run, its JSON form and its tables."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from comal_fast.game.compare import CRITERIA, calls_to_converge, verdict
from comal_fast.game.nash import duality_gap, is_falling, kl_divergence
from comal_fast.game.preference import Array, Game
from comal_fast.game.trajectory import Trajectory

SHOWN_RESPONSES = 12
LARGEST = 1000  # responses, for which the linear program takes about 20 s; beyond, no Nash policy
OPTIONS = (
    "prox", "method", "eta", "tau", "forward", "momentum", "opponents", "outer", "inner",
    "adaptive", "c1",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One solver on one game: gap and kl (outer + 1,) float64, nash (n,) float64.

    nash None: not computed, and then kl is NaN.
    """

    game: Game
    algorithm: str
    options: dict[str, Any]
    nash: Array | None
    trajectory: Trajectory
    gap: Array
    kl: Array

    @property
    def policy(self) -> Array:
        """The last iterate, (n,) float64."""
        last: Array = np.exp(self.trajectory.log_policies[-1])
        return last

    @property
    def verdict(self) -> str:
        """What became of it, by the criteria of `comal_fast.game.compare`."""
        return verdict(self.gap, self.kl, self.trajectory.policies)


def measure(
    game: Game, algorithm: str, options: dict[str, Any], nash: Array | None, trajectory: Trajectory
) -> Outcome:
    """Add the duality gap and KL(nash ‖ π_t) of every row to a trajectory."""
    gap = duality_gap(game.matrix, trajectory.policies)
    kl = np.full(len(gap), np.nan)
    if nash is not None:
        kl = kl_divergence(nash, trajectory.log_policies)
    return Outcome(game, algorithm, options, nash, trajectory, gap, kl)


def to_json(outcome: Outcome) -> bytes:
    """The JSON file; an option that the algorithm has not is null, an infinite KL is Infinity.

    Beyond LARGEST responses `matrix` is null, as are `nash` and `kl_to_nash` where not computed.
    """
    trajectory = outcome.trajectory
    small = len(outcome.game.names) <= LARGEST
    content = {
        "algorithm": outcome.algorithm,
        **{name: outcome.options.get(name) for name in OPTIONS},
        "names": list(outcome.game.names),
        "matrix": outcome.game.matrix.tolist() if small else None,
        "start": trajectory.policies[0].tolist(),
        "nash": None if outcome.nash is None else outcome.nash.tolist(),
        "policy": outcome.policy.tolist(),
        "duality_gap": outcome.gap.tolist(),
        "kl_to_nash": None if outcome.nash is None else outcome.kl.tolist(),
        "oracle_calls": trajectory.calls.tolist(),
        "inner_error": _list(trajectory.inner_error),
        "inner_budget": _list(trajectory.budget),
        "versions": versions(),
    }
    lines = (f'  "{key}": {json.dumps(value)}' for key, value in content.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _list(values: Array | None) -> list[float] | None:
    return None if values is None else values.tolist()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("comal-fast", "numpy", "scipy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            found[name] = "not installed"
    return found


def step_table(outcome: Outcome) -> Table:
    """A table of outer steps: gap, KL, calls, inner error, budget; about ten rows and the ends."""
    table = Table(box=None, pad_edge=False)
    trajectory, measured = outcome.trajectory, outcome.trajectory.inner_error is not None
    headings = ["outer step", "duality gap", "KL(Nash ‖ π)", "oracle calls"]
    for heading in [*headings, *(["inner error", "c₁/9t⁴"] if measured else [])]:
        table.add_column(heading, justify="right")
    for t in shown_rows(len(outcome.gap) - 1):
        kl = "–" if outcome.nash is None else f"{outcome.kl[t]:.3e}"
        cells = [str(t), f"{outcome.gap[t]:.3e}", kl, str(trajectory.calls[t])]
        if trajectory.inner_error is not None and trajectory.budget is not None and t > 0:
            cells += [f"{trajectory.inner_error[t - 1]:.1e}", f"{trajectory.budget[t - 1]:.1e}"]
        table.add_row(*cells)
    return table


def shown_rows(last: int) -> list[int]:
    """The rows to show: 0, multiples of a round number (at most ten of them or so), and `last`."""
    stride = next(
        m * 10**e for e in range(20) for m in (1, 2, 5) if last <= 10 * m * 10**e
    )  # fmt: skip
    rows = list(range(0, last, stride))
    return [*rows, last]


def policy_table(names: Sequence[str], columns: dict[str, Array]) -> Table:
    """A table, a row a response, a column a policy (n,); the most probable ones if n is large."""
    stacked = np.stack(list(columns.values()))
    n = stacked.shape[1]
    shown = np.arange(n)
    if n > SHOWN_RESPONSES:
        order = np.argsort(-stacked.max(axis=0), kind="stable")
        shown = order[: SHOWN_RESPONSES - 2]
    table = Table(box=None, pad_edge=False)
    table.add_column("response")
    for heading in columns:
        table.add_column(heading, justify="right")
    for i in shown:
        table.add_row(Text(names[int(i)]), *(f"{value:.6f}" for value in stacked[:, i]))
    if len(shown) < n:
        rest = 1 - stacked[:, shown].sum(axis=1)
        label = Text(f"{n - len(shown)} others", style="dim")
        table.add_row(label, *(f"{max(value, 0):.6f}" for value in rest))
    return table


def overview_table(outcomes: Sequence[Outcome]) -> Table:
    """A table, a row per algorithm: its steps, gaps and final distance."""
    table = Table(box=None, pad_edge=False)
    table.add_column("algorithm")
    for heading in ("steps", "first gap", "least gap", "last gap", "last KL to Nash"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        gap = outcome.gap
        table.add_row(
            outcome.algorithm,
            str(outcome.trajectory.steps[-1]),
            f"{gap[0]:.2e}",
            f"{gap.min():.2e}",
            f"{gap[-1]:.2e}",
            f"{outcome.kl[-1]:.2e}",
        )
    return table


def comparison_table(outcomes: Sequence[Outcome]) -> Table:
    """A table, a row per algorithm: verdict, gaps, distance, whether KL rises, calls."""
    table = Table(box=None, pad_edge=False)
    for heading in ("algorithm", "verdict"):
        table.add_column(heading, no_wrap=True)
    headings = ("least gap", "last gap", "last KL", "KL rises", "calls to 1e-6")
    for heading in headings:
        table.add_column(heading, justify="right")
    for o in outcomes:
        known = o.nash is not None
        calls = calls_to_converge(o.gap, o.trajectory.calls)
        table.add_row(
            o.algorithm,
            o.verdict,
            f"{o.gap.min():.1e}",
            f"{o.gap[-1]:.1e}",
            f"{o.kl[-1]:.1e}" if known else "–",
            ("never" if is_falling(o.kl) else "yes") if known else "–",
            "–" if calls is None else str(calls),
        )
    return table


def comparison_json(outcomes: Sequence[Outcome]) -> bytes:
    """The JSON file: the game, and per algorithm its verdict and about 200 rows of its curves."""
    first = outcomes[0]
    runs = []
    for o in outcomes:
        rows = np.unique(np.linspace(0, len(o.gap) - 1, 201).astype(int))
        runs.append(
            {
                "algorithm": o.algorithm,
                "options": o.options,
                "verdict": o.verdict,
                "calls_to_converge": calls_to_converge(o.gap, o.trajectory.calls),
                "policy": o.policy.tolist(),
                "oracle_calls": o.trajectory.calls[rows].tolist(),
                "duality_gap": o.gap[rows].tolist(),
                "kl_to_nash": None if o.nash is None else o.kl[rows].tolist(),
            }
        )
    content = {
        "names": list(first.game.names),
        "matrix": first.game.matrix.tolist() if len(first.game.names) <= LARGEST else None,
        "nash": None if first.nash is None else first.nash.tolist(),
        "criteria": CRITERIA,
        "algorithms": runs,
        "versions": versions(),
    }
    return (json.dumps(content) + "\n").encode()
