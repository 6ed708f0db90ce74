"""A picture of the sampled step's limits: each selection and label with its gaps on all games."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from comal_fast.game.plot import COLOURS, GRID, INK, MUTED
from comal_fast.game.sampled_study import AT_NASH, Row

FLOOR = 1e-6  # smaller gaps are drawn here


def draw_study(rows: Sequence[Row], title: str) -> Figure:
    """Return a figure of inpo's rows: one dot a random game, a star for the paper's game."""
    shown = [row for row in rows if row.recipe.prox == "inpo" and row.recipe.labels != "sampled"]
    figure = Figure(figsize=(11, 0.5 * len(shown) + 1.8), layout="constrained")
    figure.suptitle(title, color=INK, x=0.01, ha="left", fontsize=12)
    axes = figure.add_subplot()
    spread = np.random.default_rng(0)
    for place, row in enumerate(reversed(shown)):
        gaps = np.maximum(row.gaps, FLOOR)
        height = place + spread.uniform(-0.25, 0.25, len(gaps))
        colour = COLOURS[0] if np.median(row.gaps) <= AT_NASH else COLOURS[1]
        axes.plot(gaps, height, "o", color=colour, markersize=3.5, alpha=0.45, mew=0)
        axes.plot([np.median(gaps)] * 2, [place - 0.34, place + 0.34], color=INK, lw=1.6)
        axes.plot([max(row.paper_gap, FLOOR)], [place], "*", color=INK, markersize=10, mew=0)
    axes.axvline(AT_NASH, color=MUTED, lw=0.9, ls=":")
    axes.set_xscale("log")
    names = [f"{r.recipe.strategy}, {r.recipe.target}, {r.recipe.labels}" for r in reversed(shown)]
    axes.set_yticks(range(len(shown)), names, color=INK)
    axes.set_xlabel(
        "duality gap in P at the limit (dots: random games, bar: their median, star: the paper's "
        f"game; left end: {FLOOR:g} or less)", color=MUTED
    )  # fmt: skip
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    return figure
