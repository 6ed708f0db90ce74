"""The picture of a sweep: a win rate per cell, and the paired differences between settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comal_fast.figures.style import WIDTH, Theme, dress
from comal_fast.statistics import Interval
from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.conclusions import signed


def draw(sweep: Sweep, theme: Theme) -> Figure:
    """A figure: left win rates against the initial policy, right differences, if there are any."""
    rows = max(len(sweep.results), len(sweep.effects), 3)
    figure = Figure(
        figsize=(1.5 * WIDTH, 1.5 + 0.3 * rows), layout="constrained", facecolor=theme.paper
    )
    panels = figure.subplots(1, 2 if sweep.effects else 1, squeeze=False)[0]
    first = sweep.axes[0]
    colours = {v: theme.colours[i % len(theme.colours)] for i, v in enumerate(first.values)}
    results = sweep.results
    _forest(
        panels[0], theme, [r.cell.name.replace(",", ", ") for r in results],
        [r.win_rate for r in results], [colours[r.cell.settings[first.key]] for r in results], 0.5,
    )  # fmt: skip
    n = len(results[0].wins)
    dress(panels[0], theme, "Win rate against the initial policy", f"%, {n} held-out prompts, 95%")
    if sweep.effects:
        names = [f"{e.axis.short}: {e.a} minus {e.b}" for e in sweep.effects]
        ink = [theme.ink] * len(names)
        _forest(panels[1], theme, names, [e.difference for e in sweep.effects], ink, 0.0)
        for y, e in enumerate(sweep.effects):  # the wider interval, thin
            panels[1].hlines(y, 100 * e.joint.low, 100 * e.joint.high, color=theme.ink, lw=0.7)
        title = "Paired difference of win rates"
        dress(panels[1], theme, title, "points, 95% (thin: all rows jointly)")
    for axes in panels:
        axes.grid(False, axis="y")
        axes.grid(True, axis="x", color=theme.grid, lw=0.8)
    return figure


def _forest(
    axes: Axes,
    theme: Theme,
    names: Sequence[str],
    intervals: Sequence[Interval],
    colours: Sequence[str],
    even: float,
) -> None:
    """Draw a point and a bar per row, in percent, the first on top."""
    for y, (value, colour) in enumerate(zip(intervals, colours, strict=True)):
        mean, low, high = 100 * np.array([value.mean, value.low, value.high])
        axes.hlines(y, low, high, color=colour, lw=2.2)
        axes.plot(mean, y, "o", color=colour, ms=6)
        axes.annotate(
            f"{mean:.1f}" if even else signed(mean), (mean, y), (0, 5),
            textcoords="offset points", ha="center", fontsize=8, color=theme.ink,
        )  # fmt: skip
    axes.axvline(100 * even, color=theme.muted, lw=1, ls=(0, (4, 3)), zorder=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
