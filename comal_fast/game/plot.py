"""Pictures of a game: the duality gap by mirror-descent step and, for n = 3, paths in the simplex.

Only matplotlib's Figure class is used: no pyplot, no global backend.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from comal_fast.errors import InputError
from comal_fast.game.preference import Array

FORMATS = ("png", "svg", "pdf")
GAP_FLOOR, KL_FLOOR = 1e-17, 1e-32  # rounding; and a 0 has no place on a log axis
LONG_PATH = 10.0  # in sides of the triangle: a spiral this long is drawn with a thin line
INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = ("#2563eb", "#d97706", "#c026d3", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#65a30d")
LINES = ("-", "--", ":")  # taken in turn when the colours are used up


@dataclass(frozen=True)
class Curve:
    """One solver's line: steps, gap, kl (m,), and its path in the simplex (k, n), k free."""

    label: str
    steps: NDArray[np.int64]
    gap: Array
    kl: Array
    path: Array
    verdict: str = ""


def image_format(path: str | Path) -> str:
    """The image format that the suffix of `path` names; InputError for any other suffix."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        known = ", ".join("." + name for name in FORMATS)
        raise InputError(f"--plot {path}: the name must end in one of {known}")
    return suffix


def draw(curves: Sequence[Curve], names: Sequence[str], nash: Array | None, title: str) -> Figure:
    """A figure of the curves: gaps, KL when there is one curve, the simplex when n = 3."""
    with_simplex = nash is not None and len(names) == 3
    figure = Figure(figsize=(11.5 if with_simplex else 7.5, 4.9), layout="constrained")
    figure.suptitle(
        title.replace("$", r"\$"), x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK
    )
    if with_simplex:
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        draw_simplex(right, curves, names, nash)
    else:
        left = figure.subplots()
    draw_gaps(left, curves)
    return figure


def render(figure: Figure, format: str) -> bytes:
    """The bytes of the image file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=160, facecolor="white")
    return buffer.getvalue()


def draw_gaps(axes: Axes, curves: Sequence[Curve], x: str = "mirror-descent steps") -> None:
    """Draw duality gaps on a log scale; with one curve, its KL too."""
    single = len(curves) == 1
    for i, curve in enumerate(curves):
        marker = "o" if len(curve.steps) <= 60 else ""
        label = "duality gap" if single else curve.label
        look: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "lw": 1.8,
            "ls": LINES[i // len(COLOURS) % len(LINES)],
            "zorder": 2 + (len(curves) - i) / len(curves),  # the first curve on top
            "marker": marker,
            "ms": 3.2,
        }
        axes.plot(curve.steps, np.maximum(curve.gap, GAP_FLOOR), label=label, **look)
        if single:
            kl = np.where(np.isfinite(curve.kl), np.maximum(curve.kl, KL_FLOOR), np.nan)
            look["color"] = COLOURS[1]
            axes.plot(curve.steps, kl, label="KL(Nash ‖ policy)", **{**look, "ls": "--"})
    axes.set_yscale("log")
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel("" if single else "duality gap", color=MUTED)
    axes.grid(True, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color(GRID)
    axes.legend(frameon=False, labelcolor=INK, loc="best")


def _corners() -> Array:
    """Corners (3, 2) of an equilateral triangle: first left, second right, third on top."""
    return np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def draw_simplex(
    axes: Axes,
    curves: Sequence[Curve],
    names: Sequence[str],
    nash: Array | None,
    colours: Sequence[str] = COLOURS,
    captions: bool = True,
) -> None:
    """Draw the paths of three-response policies, their start and end, and the Nash policy.

    Without `captions` the start and the Nash policy are marked only.
    """
    corners = _corners()
    for level in (0.2, 0.4, 0.6, 0.8):
        for k in range(3):
            ends = np.zeros((2, 3))
            ends[:, k] = level
            ends[0, (k + 1) % 3] = ends[1, (k + 2) % 3] = 1 - level
            axes.plot(*(ends @ corners).T, color=GRID, lw=0.7, zorder=0)
    axes.fill(*corners.T, facecolor="none", edgecolor=MUTED, lw=1.1, zorder=1)
    for i, curve in reversed(list(enumerate(curves))):  # the first curve on top
        colour = colours[i % len(colours)]
        path = curve.path @ corners
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
        width = 0.5 if length > LONG_PATH else 1.5
        axes.plot(*path.T, color=colour, lw=width, zorder=2)
        axes.plot(*path[-1], "o", color=colour, ms=5.5, mec="white", mew=0.9, zorder=4)
    start = curves[0].path[0] @ corners
    style: dict[str, Any] = {"textcoords": "offset points", "color": INK}
    axes.plot(*start, "o", ms=7, mfc="white", mec=INK, mew=1.3, zorder=5)
    if captions:
        axes.annotate("start", tuple(start), (7, 5), fontsize=9, **style)
    if nash is not None:
        star = nash @ corners
        size = 18 if captions else 13
        axes.plot(*star, "*", ms=size, color=INK, mec="white", mew=0.9, zorder=3.5)
        if captions:
            axes.annotate("Nash", tuple(star), (8, -12), fontsize=9, **style)
    places = (((-8, -12), "right"), ((8, -12), "left"), ((0, 8), "center"))
    for corner, name, (shift, side) in zip(corners, names, places, strict=True):
        label = name.replace("$", r"\$")  # no mathematics in names
        axes.annotate(label, tuple(corner), shift, ha=side, fontsize=11, fontweight="bold", **style)
    axes.set_aspect("equal")
    axes.set_axis_off()
