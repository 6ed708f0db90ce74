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

from comal_fast.game.nash import duality_gap, kl_divergence
from comal_fast.game.preference import Array, Game
from comal_fast.game.trajectory import Trajectory

SHOWN_RESPONSES = 12


@dataclass(frozen=True)
class Outcome:
    """One solver on one game: gap and kl (outer + 1,) float64, nash (n,) float64."""

    game: Game
    algorithm: str
    options: dict[str, Any]
    nash: Array
    trajectory: Trajectory
    gap: Array
    kl: Array

    @property
    def policy(self) -> Array:
        """The last iterate, (n,) float64."""
        last: Array = np.exp(self.trajectory.log_policies[-1])
        return last


def measure(
    game: Game, algorithm: str, options: dict[str, Any], nash: Array, trajectory: Trajectory
) -> Outcome:
    """Add the duality gap and KL(nash ‖ π_t) of every row to a trajectory."""
    gap = duality_gap(game.matrix, trajectory.policies)
    kl = kl_divergence(nash, trajectory.log_policies)
    return Outcome(game, algorithm, options, nash, trajectory, gap, kl)


def to_json(outcome: Outcome) -> bytes:
    """The JSON file; an option that the algorithm has not is null, an infinite KL is Infinity."""
    trajectory = outcome.trajectory
    content = {
        "algorithm": outcome.algorithm,
        **{name: outcome.options.get(name) for name in ("eta", "tau", "outer", "inner")},
        "names": list(outcome.game.names),
        "matrix": outcome.game.matrix.tolist(),
        "start": trajectory.policies[0].tolist(),
        "nash": outcome.nash.tolist(),
        "policy": outcome.policy.tolist(),
        "duality_gap": outcome.gap.tolist(),
        "kl_to_nash": outcome.kl.tolist(),
        "versions": versions(),
    }
    lines = (f'  "{key}": {json.dumps(value)}' for key, value in content.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


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
    """Outer step, gap and KL: the start, about ten rows, the last."""
    table = Table(box=None, pad_edge=False)
    for heading in ("outer step", "duality gap", "KL(Nash ‖ policy)"):
        table.add_column(heading, justify="right")
    for t in shown_rows(len(outcome.gap) - 1):
        table.add_row(str(t), f"{outcome.gap[t]:.3e}", f"{outcome.kl[t]:.3e}")
    return table


def shown_rows(last: int) -> list[int]:
    """0, multiples of a round number (at most ten of them or so), and `last`."""
    stride = next(
        m * 10**e for e in range(20) for m in (1, 2, 5) if last <= 10 * m * 10**e
    )  # fmt: skip
    rows = list(range(0, last, stride))
    return [*rows, last]


def policy_table(names: Sequence[str], columns: dict[str, Array]) -> Table:
    """One row a response, one column a policy (n,); the most probable ones where n is large."""
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


def comparison_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per algorithm: its steps, gaps and final distance."""
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
