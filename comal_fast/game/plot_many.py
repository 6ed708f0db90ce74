"""Pictures of comparisons: every algorithm on one game, and on many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comal_fast.game.compare import CONVERGED
from comal_fast.game.plot import (
    COLOURS,
    GAP_FLOOR,
    GRID,
    INK,
    LINES,
    MUTED,
    Curve,
    draw_gaps,
    draw_simplex,
)
from comal_fast.game.preference import Array
from comal_fast.game.study import Result

_COLUMNS = 6  # simplices in a row


def draw_comparison(
    curves: Sequence[Curve], names: Sequence[str], nash: Array | None, title: str
) -> Figure:
    """A figure of gaps over oracle calls and, for n = 3, a simplex per curve with its verdict."""
    rows = math.ceil(len(curves) / _COLUMNS) if len(names) == 3 else 0
    figure = Figure(figsize=(13, 5.2 + 2.75 * rows), layout="constrained")
    _title(figure, title)
    heights = [5.2, 2.75 * rows] if rows else [5.2]
    outer = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(outer[0])
    draw_gaps(axes, curves, "oracle calls, evaluations of P(· ≻ π)")
    least = min(curve.gap.min() for curve in curves)
    axes.set_ylim(bottom=max(GAP_FLOOR, least / 5))
    axes.set_ylabel("duality gap", color=MUTED)
    axes.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    if rows:
        figure.text(0.012, 0.002, "★ Nash   ○ start   ● end", color=MUTED, fontsize=9)
        inner = outer[1].subgridspec(rows, _COLUMNS)
        for i, curve in enumerate(curves):
            panel = figure.add_subplot(inner[divmod(i, _COLUMNS)])
            colour = COLOURS[i % len(COLOURS)]
            draw_simplex(panel, [curve], names, nash, [colour], captions=False)
            label = "COMAL, six exact operators" if " = " in curve.label else curve.label
            panel.set_title(f"{label}\n{curve.verdict}", fontsize=9.5, color=INK, pad=14)
    return figure


def draw_study(results: Sequence[Result], title: str) -> Figure:
    """A figure of the share of games solved over oracle calls, and every algorithm's last gaps."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    _title(figure, title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    groups = _same_results(results)
    for i, group in enumerate(groups):
        first = group[0]
        left.plot(
            np.maximum(first.curve_calls, 1),
            first.curve_share,
            color=COLOURS[i % len(COLOURS)],
            ls=LINES[i // len(COLOURS) % len(LINES)],
            lw=1.8,
            label=_group_label(group),
        )
        gaps = np.maximum(first.final_gap, GAP_FLOOR)
        shift = np.random.default_rng(i).uniform(-0.25, 0.25, len(gaps))
        look = {"color": COLOURS[i % len(COLOURS)], "mew": 0, "alpha": 0.55}
        right.plot(gaps, i + shift, "o", ms=3.6, **look)
        right.plot(np.median(gaps), i, "|", ms=20, mew=2.2, color=INK)
    _axes(left, "oracle calls, evaluations of P(· ≻ π)", f"share of games with gap ≤ {CONVERGED:g}")
    left.set_xscale("log")
    left.set_xlim(left=10)
    left.set_ylim(-0.02, 1.02)
    left.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left")
    _axes(right, "duality gap at the end, one point a game; the bar is the median", "")
    right.set_xscale("log")
    right.axvline(CONVERGED, color=MUTED, lw=1, ls=":")
    right.set_yticks(range(len(groups)), [_group_label(group) for group in groups])
    for tick, i in zip(right.get_yticklabels(), range(len(groups)), strict=True):
        tick.set_color(COLOURS[i % len(COLOURS)])
    right.invert_yaxis()
    return figure


def _same_results(results: Sequence[Result]) -> list[list[Result]]:
    """Groups of results whose final gaps agree within 1e-9: the exact operators are one."""
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            apart = np.abs(np.subtract(group[0].final_gap, result.final_gap)).max()
            if group[0].solver == result.solver and apart <= 1e-9:
                group.append(result)
                break
        else:
            groups.append([result])
    return groups


def _group_label(group: list[Result]) -> str:
    if len(group) == 1:
        return group[0].label
    names = [result.label.removeprefix("COMAL ") for result in group]
    lines = [", ".join(part) for part in (names[:3], names[3:]) if part]
    return "COMAL " + ",\n".join(lines)


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(
        title.replace("$", r"\$"), x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK
    )


def _axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    axes.grid(True, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color(GRID)
