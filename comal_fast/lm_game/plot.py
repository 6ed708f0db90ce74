"""The paths of language models in the simplex of three responses, and their way to Nash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from comal_fast.figures.style import LIGHT, Theme, dress, new_figure, to_png
from comal_fast.game.preference import Array
from comal_fast.lm_game.measure import Measured

TARGET = 0.05  # the total variation that counts as having arrived
MOST_BANDS = 3  # with more runs than this the ranges over the prompts hide the lines
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def draw(runs: Sequence[Measured], theme: Theme = LIGHT) -> bytes:
    """A PNG: mean policies over the prompts (where the game has three responses), and distances."""
    figure = new_figure(theme, 3.6)
    if runs[0].one and len(runs[0].one.names) == 3:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _simplex(left, runs, theme)
    else:
        right = figure.subplots()
    bands = len(runs) <= MOST_BANDS
    spread = "mean, and all prompts" if bands else "mean over prompts"
    dress(right, theme, "Distance from Nash", "iteration", f"total variation: {spread}")
    for run, colour in zip(runs, theme.colours, strict=False):
        tv = run.total_variation
        steps = np.arange(len(tv))
        if bands:
            low, high = tv.min(axis=1), tv.max(axis=1)
            right.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        right.plot(steps, tv.mean(axis=1), color=colour, lw=1.8, label=run.name)
    right.axhline(TARGET, color=theme.muted, lw=1, ls=(0, (4, 3)))
    right.set_ylim(bottom=0)
    right.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="upper right")
    return to_png(figure)


def _simplex(axes: Axes, runs: Sequence[Measured], theme: Theme) -> None:
    axes.set_title(
        "Exact policy, mean over prompts",
        loc="left",
        fontsize=10.5,
        fontweight="bold",
        color=theme.ink,
        pad=16,
    )
    for level in (0.2, 0.4, 0.6, 0.8):
        for k in range(3):
            ends = np.zeros((2, 3))
            ends[:, k] = level
            ends[0, (k + 1) % 3] = ends[1, (k + 2) % 3] = 1 - level
            axes.plot(*_place(ends).T, color=theme.grid, lw=0.7, zorder=0)
    axes.fill(*_CORNERS.T, facecolor="none", edgecolor=theme.muted, lw=1.1, zorder=1)
    for run, colour in zip(runs, theme.colours, strict=False):
        path = _place(run.policies.mean(axis=1)[:, :3])
        axes.plot(*path.T, color=colour, lw=1.4, marker="o", ms=2.2, zorder=2)
        axes.plot(*path[-1], "o", color=colour, ms=6, mec=theme.paper, mew=0.9, zorder=4)
    note: dict[str, Any] = {"textcoords": "offset points", "color": theme.ink, "fontsize": 9}
    start, nash = _place(runs[0].policies[0].mean(axis=0)[:3]), _place(runs[0].nash[0])
    axes.plot(*start, "o", ms=6, mfc=theme.paper, mec=theme.ink, mew=1.3, zorder=5)
    axes.annotate("start", tuple(start), (7, 5), **note)
    axes.plot(*nash, "*", ms=15, color=theme.ink, mec=theme.paper, mew=0.9, zorder=3.5)
    axes.annotate("Nash", tuple(nash), (7, -11), **note)
    shifts = ((0, -13), (0, -13), (0, 6))
    for corner, name, shift in zip(_CORNERS, _names(runs[0]), shifts, strict=True):
        label = name.replace("$", r"\$")
        axes.annotate(label, tuple(corner), shift, ha="center", fontweight="bold", **note)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _names(run: Measured) -> tuple[str, ...]:
    return run.one.names if run.one else ()


def _place(policies: Array) -> Array:
    """(..., 3) → points (..., 2) of the triangle; what other strings take is shared out."""
    shares = policies / policies.sum(axis=-1, keepdims=True)
    points: Array = shares @ _CORNERS
    return points
