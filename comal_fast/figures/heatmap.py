"""A matrix of win rates as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from comal_fast.figures.style import Theme, dress, new_figure
from comal_fast.statistics import Array


def heat_map(
    theme: Theme,
    names: Sequence[str],
    rates: Array,
    excludes: NDArray[np.bool_],
    row: str = "",
    column: str = "",
) -> Figure:
    """A figure of `rates` (n, n), rows against columns: NaN is left empty.

    Bold where `excludes` (n, n).
    """
    n = len(names)
    reach = max(0.1, float(np.nanmax(np.abs(rates - 0.5))))
    figure = new_figure(theme, min(6.4, 1.6 + 0.75 * n))
    axes = figure.subplots()
    image = axes.imshow(rates, cmap=theme.diverging, vmin=0.5 - reach, vmax=0.5 + reach)
    size = min(10.0, max(5.0, 100 / n))
    for i, j in zip(*np.nonzero(np.isfinite(rates)), strict=True):
        strong = abs(rates[i, j] - 0.5) > 0.6 * reach
        axes.text(
            j, i, f"{100 * rates[i, j]:.1f}", ha="center", va="center", fontsize=size,
            color="white" if strong else theme.ink,
            fontweight="bold" if excludes[i, j] else "normal",
        )  # fmt: skip
    dress(axes, theme, "Win rate, % (bold: interval excludes 50%)", column, row)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    long = max(map(len, names)) > 4
    axes.set_xticks(range(n), names, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(n), names)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=lambda v, _: f"{100 * v:.0f}%")
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.muted, length=0, labelsize=8.5)
    return figure
