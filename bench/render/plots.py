"""What pictures of records are made of: bars, lines against tokens, a roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.contender import FLOOR
from bench.record import Row
from bench.render.formats import full_name
from comal_fast.figures.style import LIGHT, dress, from_zero, new_figure, to_png

OURS = ("comal_kernels", "comal_fast")  # how the names of this library's own rows begin
POINTS = 8  # operators of a roofline, the longest


def bars(rows: list[Row], title: Callable[[int], str]) -> bytes:
    """A picture: a bar a timed row, fastest on top, with its quartiles; the floor as a line.

    A panel for each number of tokens, with its own title (of 0, if the rows tell none).
    """
    timed = [r for r in rows if "seconds" in r]
    sizes = sorted({r.get("tokens", 0) for r in timed})
    groups = [[r for r in timed if r.get("tokens", 0) == n] for n in sizes]
    height = 0.9 + sum(0.34 * len(g) + 0.6 for g in groups)
    figure = new_figure(LIGHT, height)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(g) for g in groups])
    for axes, group, tokens in zip(panels[:, 0], groups, sizes, strict=True):
        _times(axes, group)
        axes.annotate(  # from the picture's left edge: the names take half of it
            title(tokens), (0.01, 1.0), xycoords=("figure fraction", "axes fraction"),
            xytext=(0, 8), textcoords="offset points", fontsize=10.5, fontweight="bold",
            color=LIGHT.ink,
        )  # fmt: skip
    return to_png(figure)


def _times(axes: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda r: -r["seconds"]["median"])
    floor = next((r["seconds"]["median"] for r in rows if r["name"] == FLOOR), None)
    rows = [r for r in rows if r["name"] != FLOOR]
    low, medians, high = (
        np.array([r["seconds"][k] for r in rows]) for k in ("q25", "median", "q75")
    )
    errors = np.stack([medians - low, high - medians])
    _named_bars(axes, rows, medians, xerr=errors, ecolor=LIGHT.ink)
    dress(axes, LIGHT, " ", x="seconds, median and quartiles")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=LIGHT.grid, lw=0.8)
    if floor is not None:
        axes.axvline(floor, color=LIGHT.colours[4], lw=1.4, ls=(0, (4, 3)))
        axes.annotate(
            "floor: the plain products", (floor, 1.0), xycoords=("data", "axes fraction"),
            xytext=(4, -9), textcoords="offset points", color=LIGHT.colours[4], fontsize=8,
        )  # fmt: skip


def amounts(rows: list[Row], value: Callable[[Row], float], title: str, unit: str) -> bytes:
    """A picture: a bar a row, the least on top."""
    rows = sorted(rows, key=value, reverse=True)
    figure = new_figure(LIGHT, 0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    _named_bars(axes, rows, np.array([value(r) for r in rows]))
    dress(axes, LIGHT, title, unit)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=LIGHT.grid, lw=0.8)
    return to_png(figure)


def _named_bars(axes: Axes, rows: list[Row], values: np.ndarray, **more: Any) -> None:
    """Draw bars from the bottom up: ours in colour, inexact ones pale."""
    places = np.arange(len(rows))
    colours = [LIGHT.colours[0] if r["name"].startswith(OURS) else LIGHT.muted for r in rows]
    for bar, r in zip(axes.barh(places, values, 0.62, color=colours, **more), rows, strict=True):
        bar.set_alpha(1.0 if r.get("exact", True) else 0.45)
    axes.set_yticks(places, [full_name(r) for r in rows])


@dataclass(frozen=True)
class Panel:
    """One quantity against tokens."""

    title: str
    unit: str
    value: Callable[[Row], float | None]
    exponents: Mapping[str, float] = field(default_factory=dict)  # by name, for the legend
    log: bool = False


def lines(rows: list[Row], panels: Sequence[Panel]) -> bytes:
    """A picture: a line a name against tokens, panels side by side."""
    figure = new_figure(LIGHT, 4.4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _lines(axes, rows, panel)
        dress(axes, LIGHT, panel.title, "tokens", panel.unit)
        if not panel.log:
            values = [v for r in rows if (v := panel.value(r)) is not None]
            from_zero(axes, np.array(values or [0.0]))
        _token_axis(axes, rows)
        if panel.log:
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(
            frameon=False, fontsize=7.5, labelcolor=LIGHT.ink, loc="upper left",
            bbox_to_anchor=(-0.05, -0.17),
        )  # fmt: skip
    return to_png(figure)


def _lines(axes: Axes, rows: list[Row], panel: Panel) -> None:
    names = list(dict.fromkeys(r["name"] for r in rows))
    for name, colour in zip(names, _colours(names), strict=True):
        mine = [r for r in rows if r["name"] == name]
        points = [(r["tokens"], v) for r in mine if (v := panel.value(r)) is not None]
        if not points:
            continue
        x, y = zip(*sorted(points), strict=True)
        fit = panel.exponents.get(name)
        label = name if fit is None else f"{name}: T^{fit:.2f}"
        dashed = "--" if name == FLOOR else "-"
        axes.plot(x, y, marker="o", ls=dashed, ms=4.5, lw=1.8, color=colour, label=label)
    if panel.log:
        axes.set_yscale("log")


def _colours(names: list[str]) -> list[str]:
    rest = iter(LIGHT.colours[1:] * 3)
    special = {FLOOR: LIGHT.colours[4], **dict.fromkeys(OURS, LIGHT.colours[0])}
    return [special.get(name) or next(c for c in rest if c != LIGHT.colours[4]) for name in names]


def _token_axis(axes: Axes, rows: list[Row]) -> None:
    sizes = sorted({r["tokens"] for r in rows if "tokens" in r})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()


def roofline(rows: list[Row], roofs: dict[str, float], wall: float, title: str) -> bytes:
    """A picture: operators by FLOP per byte and achieved rate, under roofs of the same run.

    The longer one's share of `wall`, the larger its dot.
    """
    rows = [r for r in rows if r["flops"] and r["bytes"]][:POINTS]
    figure = new_figure(LIGHT, 4.4)
    axes = figure.subplots()
    ridge = roofs["flops_per_second"] / roofs["bytes_per_second"]
    intensity = [r["flops"] / r["bytes"] for r in rows]
    low, high = (
        min([ridge / 8, *(i / 2 for i in intensity)]),
        max([ridge * 64, *(i * 2 for i in intensity)]),
    )
    x = np.geomspace(low, high, 100)
    roof = np.minimum(x * roofs["bytes_per_second"], roofs["flops_per_second"])
    axes.plot(x, roof / 1e9, color=LIGHT.ink, lw=1.4, label="roofs measured in the same run")
    for r, colour, at in zip(rows, LIGHT.colours * 8, intensity, strict=False):
        shapes = " ".join("×".join(map(str, s)) for s in r["shapes"][:2])
        label = f"{r['name'].removeprefix('aten::')} {shapes}"
        size = 30 + 900 * r["seconds"] / wall
        axes.scatter(at, r["flops_per_second"] / 1e9, s=size, color=colour, alpha=0.7, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    dress(axes, LIGHT, title, "FLOP per byte that must move", "GFLOP/s")
    axes.legend(
        frameon=False, fontsize=7, labelcolor=LIGHT.ink, loc="upper left",
        bbox_to_anchor=(1.0, 1.0), markerscale=0.6,
    )  # fmt: skip
    return to_png(figure)
