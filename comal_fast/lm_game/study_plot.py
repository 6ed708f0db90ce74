"""A study's picture: mean gaps by iteration, and last gaps by family of games."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from comal_fast.figures.style import LIGHT, Theme, dress, new_figure, to_png
from comal_fast.lm_game.study import Study

_LINES = ("-", (0, (5, 2)))  # the first eight runs, and those after them


def draw(study: Study, theme: Theme = LIGHT) -> bytes:
    """A PNG of three panels: training prompts, held-out prompts, families."""
    figure = new_figure(theme, 7.4)
    panels = figure.subplot_mosaic([["train", "held"], ["family", "family"]])
    for held, name in ((False, "train"), (True, "held")):
        axes = panels[name]
        title = "Held-out prompts" if held else "Training prompts"
        dress(axes, theme, title, "iteration", "duality gap, mean over seeds and prompts")
        for i, run in enumerate(study.names):
            curve = study.curve(run, held)
            look = _look(i, theme)
            axes.plot(curve.mean(axis=0), lw=1.6, label=run, **look)
            low, high = curve.min(axis=0), curve.max(axis=0)
            steps = np.arange(curve.shape[1])
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.12, lw=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _families(panels["family"], study, theme)
    figure.legend(
        *panels["train"].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
    )
    return to_png(figure)


def _families(axes: Axes, study: Study, theme: Theme) -> None:
    hollow = "; hollow: dashed above" if len(study.names) > len(theme.colours) else ""
    title = f"By family of games (training prompts, 95 % intervals{hollow})"
    dress(axes, theme, title, "", "duality gap")
    names, families = study.names, study.families
    for i, run in enumerate(names):
        found = [study.interval(study.values(run, "gap"), study.family(f)) for f in families]
        places = np.arange(len(families)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        ends = [[v.mean - v.low for v in found], [v.high - v.mean for v in found]]
        means = [v.mean for v in found]
        look = _look(i, theme)
        face = theme.paper if look["ls"] != "-" else None
        axes.errorbar(
            places, means, ends, fmt="o", ms=4.5, lw=1.4, color=look["color"],
            markerfacecolor=face,
        )  # fmt: skip
    axes.set_xticks(range(len(families)), families)
    axes.set_ylim(bottom=0)


def _look(i: int, theme: Theme) -> dict[str, Any]:
    colours = theme.colours
    return {"color": colours[i % len(colours)], "ls": _LINES[i // len(colours) % len(_LINES)]}
