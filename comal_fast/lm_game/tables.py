"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from comal_fast.lm_game.measure import Measured


def iterate_table(run: Measured) -> Table:
    """A table of one run, a row an iterate; π is the mean over all prompts, of one game."""
    table = Table(
        title=f"{run.name}: prox {run.prox}, {_prompts(run)}", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    for name in ("t", *_names(run), "other", *_DISTANCES):
        table.add_column(name, justify="right", no_wrap=True)
    for t in range(len(run.policies)):
        table.add_row(str(t), *_policy(run, t), *_distances(run, t))
    if run.one:
        table.add_section()
        table.add_row("Nash", *(f"{p:.3f}" for p in run.nash[0]))
    return table


def run_table(runs: Sequence[Measured]) -> Table:
    """A table of last iterates, a row a run."""
    table = Table(title=f"last iterates: {_prompts(runs[0])}", box=SIMPLE, padding=0)
    for name in ("run", "prox", "t", *_names(runs[0]), "other", *_DISTANCES, "min"):
        table.add_column(name, justify="left" if name in ("run", "prox") else "right", no_wrap=True)
    for run in runs:
        last = len(run.policies) - 1
        table.add_row(
            run.name,
            run.prox,
            str(last),
            *_policy(run, last),
            *_distances(run, last),
            f"{run.seconds / 60:.1f}",
        )
    return table


def _names(run: Measured) -> tuple[str, ...]:
    return run.one.names if run.one else ()


def _policy(run: Measured, t: int) -> list[str]:
    """Mean probabilities of the responses, where the prompts have them in common, and of others."""
    mean = run.policies[t].mean(axis=0)
    return [f"{p:.3f}" for p in (mean if run.one else mean[-1:])]


_DISTANCES = ("TV", "held-out", "worst", "gap")  # total variation: mean, of held-out prompts, …


def _distances(run: Measured, t: int) -> list[str]:
    tv = run.total_variation[t]
    values = (tv.mean(), tv[run.held_out].mean(), tv.max(), run.gap[t].mean())
    return [f"{value:.3f}" for value in values]


def _prompts(run: Measured) -> str:
    held = int(run.held_out.sum())
    return f"{len(run.held_out) - held} training and {held} held-out prompts"
