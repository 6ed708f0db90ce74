"""Pictures of the records: bars, memory, scaling, roofline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.record import Record
from bench.render.rows import full_name
from comal_fast.figures.style import LIGHT, dress, from_zero, new_figure, to_png

OURS = ("comal_kernels", "comal_fast")
MIB = 2**20
POINTS = 8  # operators of a roofline, the longest


def bars(result: Record) -> bytes:
    """A bar a contender, fastest on top, with its quartiles; the floor as a line."""
    timed = [r for r in result["rows"] if "seconds" in r]
    sizes = sorted({r.get("tokens", 0) for r in timed})
    groups = [[r for r in timed if r.get("tokens", 0) == n] for n in sizes]
    height = 0.9 + sum(0.34 * len(g) + 0.6 for g in groups)
    figure = new_figure(LIGHT, height)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(g) for g in groups])
    for axes, group, tokens in zip(panels[:, 0], groups, sizes, strict=True):
        _bars(axes, group)
        title = _title(result, tokens)
        axes.annotate(  # from the picture's left edge: the names take half of it
            title, (0.01, 1.0), xycoords=("figure fraction", "axes fraction"), xytext=(0, 8),
            textcoords="offset points", fontsize=10.5, fontweight="bold", color=LIGHT.ink,
        )  # fmt: skip
    return to_png(figure)


def _bars(axes: Axes, rows: list[Record]) -> None:
    rows = sorted(rows, key=lambda r: -r["seconds"]["median"])
    floor = next((r["seconds"]["median"] for r in rows if r["name"] == "floor"), None)
    rows = [r for r in rows if r["name"] != "floor"]
    places = np.arange(len(rows))
    medians = np.array([r["seconds"]["median"] for r in rows])
    spread = np.array(
        [
            [m - r["seconds"]["q25"], r["seconds"]["q75"] - m]
            for m, r in zip(medians, rows, strict=True)
        ]
    )
    colours = [LIGHT.colours[0] if r["name"].startswith(OURS) else LIGHT.muted for r in rows]
    alpha = [1.0 if r.get("exact", True) else 0.45 for r in rows]
    drawn = axes.barh(places, medians, 0.62, color=colours, xerr=spread.T, ecolor=LIGHT.ink)
    for bar, a in zip(drawn, alpha, strict=True):
        bar.set_alpha(a)
    axes.set_yticks(places, [full_name(r) for r in rows])
    dress(axes, LIGHT, " ", x="seconds, median and quartiles")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=LIGHT.grid, lw=0.8)
    if floor is not None:
        axes.axvline(floor, color=LIGHT.colours[4], lw=1.4, ls=(0, (4, 3)))
        axes.annotate(
            "floor: the plain products", (floor, 1.0), xycoords=("data", "axes fraction"),
            xytext=(4, -9), textcoords="offset points", color=LIGHT.colours[4], fontsize=8,
        )  # fmt: skip


def _title(result: Record, tokens: int) -> str:
    shape, device = result["shape"], result["device"]
    if result["bench"] == "step":
        what = f"One training step of {result['model']}, {shape['distinct_tokens']} tokens"
    else:
        kind = "forward" if result["bench"] == "head-forward" else "forward + backward"
        what = f"DPO from hidden states, {kind}: {tokens} × {shape['hidden']} × {shape['vocab']}"
    return f"{what}, {shape['dtype']}, {device['name']}"


def _lines(
    axes: Axes,
    rows: list[Record],
    value: Callable[[Record], float | None],
    exponents: dict[str, float],
) -> None:
    """A line a contender against tokens, its exponent in the legend."""
    names = list(dict.fromkeys(r["name"] for r in rows))
    for name, colour in zip(names, _colours(names), strict=True):
        points = [
            (r["tokens"], v) for r in rows if r["name"] == name and (v := value(r)) is not None
        ]
        if not points:
            continue
        x, y = zip(*sorted(points), strict=True)
        label = f"{name}: T^{exponents[name]:.2f}" if name in exponents else name
        dashed = "--" if name == "floor" else "-"
        axes.plot(x, y, marker="o", ls=dashed, ms=4.5, lw=1.8, color=colour, label=label)


def _colours(names: list[str]) -> list[str]:
    rest = iter(LIGHT.colours[1:] * 3)
    special = {"floor": LIGHT.colours[4], **dict.fromkeys(OURS, LIGHT.colours[0])}
    return [special.get(name) or next(c for c in rest if c != LIGHT.colours[4]) for name in names]


def _token_axis(axes: Axes, rows: list[Record]) -> None:
    sizes = sorted({r["tokens"] for r in rows if "tokens" in r})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()


def scaling(result: Record) -> bytes:
    """Time and extra memory against tokens."""
    rows = [r for r in result["rows"] if "seconds" in r]
    figure = new_figure(LIGHT, 4.4)
    left, right = figure.subplots(1, 2)
    fits = result["fits"]
    exponents = {k: {n: f[k] for n, f in fits.items() if k in f} for k in ("time", "memory")}
    _lines(left, rows, lambda r: r["seconds"]["median"], exponents["time"])
    left.set_yscale("log")
    dress(left, LIGHT, "Time", "tokens", "seconds")
    _lines(right, rows, lambda r: _mib(r), exponents["memory"])
    dress(right, LIGHT, "Memory beyond inputs and gradients", "tokens", "MiB")
    from_zero(right, np.array([v for r in rows if (v := _mib(r)) is not None] or [0.0]))
    for axes in (left, right):
        _token_axis(axes, rows)
    left.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in (left, right):
        axes.legend(
            frameon=False, fontsize=7.5, labelcolor=LIGHT.ink, loc="upper left",
            bbox_to_anchor=(-0.05, -0.17),
        )  # fmt: skip
    return to_png(figure)


def memory(result: Record) -> bytes:
    """Extra memory: lines against tokens, or bars where there is one size."""
    rows = [r for r in result["rows"] if "extra_bytes" in r]
    if len({r["tokens"] for r in rows}) > 1:
        figure = new_figure(LIGHT, 4.2)
        axes = figure.subplots()
        _lines(axes, rows, _mib, {})
        _token_axis(axes, rows)
        dress(axes, LIGHT, "Memory beyond inputs and gradients", "tokens", "MiB")
        from_zero(axes, np.array([r["extra_bytes"] / MIB for r in rows]))
        axes.legend(frameon=False, fontsize=8, labelcolor=LIGHT.ink)
        return to_png(figure)
    rows.sort(key=lambda r: -r["extra_bytes"])
    figure = new_figure(LIGHT, 0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    colours = [LIGHT.colours[0] if r["name"].startswith(OURS) else LIGHT.muted for r in rows]
    axes.barh(np.arange(len(rows)), [r["extra_bytes"] / MIB for r in rows], 0.62, color=colours)
    axes.set_yticks(np.arange(len(rows)), [full_name(r) for r in rows])
    dress(axes, LIGHT, f"Memory beyond inputs and gradients, {rows[0]['tokens']} tokens", "MiB")
    axes.grid(False, axis="y")
    return to_png(figure)


def _mib(row: Record) -> float | None:
    return row["extra_bytes"] / MIB if "extra_bytes" in row else None


def roofline(result: Record) -> bytes:
    """Operators by FLOP per byte and achieved rate, under the roofs measured in the same run."""
    roofs = result["roofs"]
    rows = [r for r in result["rows"] if r["flops"] and r["bytes"]][:POINTS]
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
        size = 30 + 900 * r["seconds"] / result["wall"]
        axes.scatter(at, r["flops_per_second"] / 1e9, s=size, color=colour, alpha=0.7, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    what = result["bench"].removeprefix("profile-")
    title = f"Roofline: {what}, {result['device']['name']}"
    dress(axes, LIGHT, title, "FLOP per byte that must move", "GFLOP/s")
    axes.legend(
        frameon=False, fontsize=7, labelcolor=LIGHT.ink, loc="upper left",
        bbox_to_anchor=(1.0, 1.0), markerscale=0.6,
    )  # fmt: skip
    return to_png(figure)


DRAW = {
    "head": bars,
    "head-forward": bars,
    "step": bars,
    "memory": memory,
    "scaling": scaling,
    "profile-head": roofline,
    "profile-step": roofline,
}


def draw(result: Record) -> bytes:
    """The picture of a record, as PNG."""
    return DRAW[result["bench"]](result)
