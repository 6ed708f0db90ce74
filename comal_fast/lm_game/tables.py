"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from comal_fast.lm_game.measure import Measured


def iterate_table(run: Measured) -> Table:
    """A table of one run, a row an iterate; π is the mean over all prompts."""
    table = Table(
        title=f"{run.name}: prox {run.prox}, {_prompts(run)}", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    columns = ("t", *run.game.names, "other", *_DISTANCES)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for t, policy in enumerate(run.policies.mean(axis=1)):
        table.add_row(str(t), *(f"{p:.3f}" for p in policy), *_distances(run, t))
    table.add_section()
    table.add_row("Nash", *(f"{p:.3f}" for p in run.nash))
    return table


def run_table(runs: Sequence[Measured]) -> Table:
    """A table of last iterates, a row a run."""
    table = Table(title=f"last iterates: {_prompts(runs[0])}", box=SIMPLE, padding=0)
    columns = ("run", "prox", "t", *runs[0].game.names, "other", *_DISTANCES, "min")
    for name in columns:
        table.add_column(name, justify="left" if name in ("run", "prox") else "right", no_wrap=True)
    for run in runs:
        last = len(run.policies) - 1
        policy = run.policies[last].mean(axis=0)
        table.add_row(
            run.name,
            run.prox,
            str(last),
            *(f"{p:.3f}" for p in policy),
            *_distances(run, last),
            f"{run.seconds / 60:.1f}",
        )
    return table


_DISTANCES = ("TV", "held-out", "worst", "gap")  # total variation: mean, of held-out prompts, …


def _distances(run: Measured, t: int) -> list[str]:
    tv = run.total_variation[t]
    values = (tv.mean(), tv[run.held_out].mean(), tv.max(), run.gap[t].mean())
    return [f"{value:.3f}" for value in values]


def _prompts(run: Measured) -> str:
    held = int(run.held_out.sum())
    return f"{len(run.held_out) - held} training and {held} held-out prompts"
