"""The look of the report's figures, on light and on dark paper."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from comal_fast.statistics import Array

WIDTH = 7.2  # inches; the page shows it about 700 px wide
DPI = 160
STRIP_POINTS = 400  # more responses than this are drawn without single points


@dataclass(frozen=True)
class Theme:
    """Colours of one paper; `colours` in the order in which series take them."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    colours: tuple[str, ...]
    worse: str
    even: str
    better: str

    @property
    def diverging(self) -> Colormap:
        """The colour map from `worse` through `even` to `better`."""
        return LinearSegmentedColormap.from_list("win", [self.worse, self.even, self.better])


LIGHT = Theme(
    "light", "#ffffff", "#1f2430", "#6b7280", "#e5e7eb",
    ("#2563eb", "#d97706", "#059669", "#c026d3", "#dc2626", "#0891b2", "#7c3aed", "#65a30d"),
    worse="#d97706", even="#f3f4f6", better="#2563eb",
)  # fmt: skip
DARK = Theme(
    "dark", "#171a21", "#e5e7eb", "#9ca3af", "#2d333f",
    ("#60a5fa", "#fbbf24", "#34d399", "#e879f9", "#f87171", "#22d3ee", "#a78bfa", "#a3e635"),
    worse="#d97706", even="#252a34", better="#3b82f6",
)  # fmt: skip


def new_figure(theme: Theme, height: float) -> Figure:
    """An empty figure of the page's width; height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.paper)


def dress(axes: Axes, theme: Theme, title: str, x: str = "", y: str = "") -> None:
    """Give one panel its title, axis names, grid and colours."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=theme.ink)
    axes.set_xlabel(x, color=theme.muted, fontsize=9)
    axes.set_ylabel(y, color=theme.muted, fontsize=9)
    axes.grid(True, axis="y", color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)


def iterate_axis(axes: Axes, first: int, last: int, most: int = 20) -> None:
    """Put whole numbers from `first` to `last` along x, about `most` of them."""
    axes.set_xlim(first - 0.5, last + 0.5)
    stride = next(s * 10**e for e in range(9) for s in (1, 2, 5) if last - first < most * s * 10**e)
    axes.set_xticks(range(-(-first // stride) * stride, last + 1, stride))


def legend(axes: Axes, theme: Theme) -> None:
    """Draw a legend in one row above the data, for which the y axis makes room."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.16 * (top - bottom))
    columns = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        facecolor=theme.paper, edgecolor="none", framealpha=0.8, labelcolor=theme.ink,
        fontsize=8.5, loc="upper left", ncols=columns, handlelength=1.4, columnspacing=1.1,
        borderaxespad=0.1,
    )  # fmt: skip


def points_with_bars(
    axes: Axes, x: Array, mean: Array, low: Array, high: Array, colour: str, label: str
) -> None:
    """Draw means joined by a thin line, with their intervals as bars; all (n,), NaN left out."""
    below, above = np.fmax(mean - low, 0), np.fmax(high - mean, 0)
    bars = np.nan_to_num(np.stack([below, above]))
    axes.plot(x, mean, color=colour, lw=1, alpha=0.5, zorder=2)
    axes.errorbar(
        x, mean, yerr=bars, fmt="o", ms=5, color=colour, ecolor=colour, elinewidth=1.6,
        capsize=3.5, capthick=1.4, label=label, zorder=3,
    )  # fmt: skip


def distribution(axes: Axes, theme: Theme, groups: dict[int, Array], colour: str) -> None:
    """Draw per group a box (quartiles, 5 % and 95 %), its mean, and the single values where few."""
    places = list(groups)
    # (5, groups); by hand, since Axes.boxplot resolves the global backend and imports pyplot
    levels = np.array([np.percentile(v, (5, 25, 50, 75, 95)) for v in groups.values()]).T
    axes.vlines(places, levels[0], levels[4], color=theme.muted, lw=1.1, zorder=1.5)
    axes.bar(
        places, levels[3] - levels[1], 0.5, levels[1], facecolor=theme.grid, edgecolor=theme.muted,
        lw=1, zorder=2,
    )  # fmt: skip
    axes.hlines(
        levels[2], [x - 0.25 for x in places], [x + 0.25 for x in places], color=theme.ink, lw=1.4,
        zorder=2.2,
    )  # fmt: skip
    for x, values in groups.items():
        if len(values) <= STRIP_POINTS:
            shift = np.random.default_rng(x).uniform(-0.2, 0.2, len(values))
            axes.plot(x + shift, values, "o", ms=2.8, mew=0, color=colour, alpha=0.5, zorder=2.5)
    means = [values.mean() for values in groups.values()]
    axes.plot(places, means, "D", ms=5.5, color=colour, mec=theme.paper, mew=1, zorder=4)


def mark_moves(axes: Axes, theme: Theme, places: Sequence[float], label: str | None) -> None:
    """Draw a dashed line at each place where the reference moved."""
    for i, x in enumerate(places):
        named = label if i == 0 else None
        axes.axvline(x, color=theme.colours[1], lw=1.1, ls=(0, (4, 3)), zorder=1, label=named)


def from_zero(axes: Axes, values: Array) -> None:
    """Start the y axis at 0, for values that cannot be negative."""
    top = float(np.max(values[np.isfinite(values)], initial=0))
    axes.set_ylim(0, top * 1.15 if top > 0 else 1)


def smoothed(values: Array) -> Array:
    """Centred running mean (n,) over about a tenth of the values, shorter at the ends."""
    half = max(1, math.ceil(len(values) / 20))
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    finite = (w[np.isfinite(w)] for w in windows)
    return np.array([w.mean() if len(w) else np.nan for w in finite])


def to_png(figure: Figure) -> bytes:
    """The bytes of the figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()
