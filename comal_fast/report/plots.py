"""The report's figures: one function each, `None` where the run holds nothing to draw yet.

Only matplotlib's Figure class is used: no pyplot, no global state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comal_fast.figures.heatmap import heat_map
from comal_fast.figures.style import (
    Theme,
    distribution,
    dress,
    from_zero,
    iterate_axis,
    legend,
    mark_moves,
    new_figure,
    points_with_bars,
    smoothed,
)
from comal_fast.report.facts import (
    phases,
    reference_moves,
    seconds,
    train_runs,
    win_matrix,
)
from comal_fast.report.load import Evaluation, Row, Run
from comal_fast.statistics import LEAST_PROMPTS, Array, Interval, number
from comal_fast.store.directory import PHASES
from comal_fast.system.terminal import duration

NOTHING = Interval(np.nan, np.nan, np.nan)
SMOOTH_FROM = 150  # optimizer steps above which a running mean is drawn


def win_rate(run: Run, theme: Theme) -> Figure | None:
    """A figure of every iterate's win rate against the initial policy."""
    found = {t: e.win_rates[0] for t, e in run.evaluations.items() if 0 in e.win_rates and t > 0}
    if not found:
        return None
    figure = new_figure(theme, 3.4)
    axes = figure.subplots()
    x, (mean, low, high) = np.array(list(found), float), 100 * _columns(list(found.values()))
    points_with_bars(axes, x, mean, low, high, theme.colours[0], "win rate, 95% interval")
    axes.axhline(50, color=theme.muted, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.plot(0, 50, "o", ms=5.5, mfc=theme.paper, mec=theme.muted, mew=1.3, zorder=3)
    if len(found) <= 12:
        for place, value in zip(x, mean, strict=True):
            axes.annotate(
                f"{value:.1f}%", (place, value), (7, -9), textcoords="offset points", va="center",
                color=theme.ink, fontsize=9,
            )  # fmt: skip
    dress(axes, theme, "Win rate against the initial policy", "iterate", "%, held-out prompts")
    iterate_axis(axes, 0, max(found))
    seen = np.stack([mean, low, high])
    bottom, top = min(45.0, np.nanmin(seen) - 2), max(55.0, np.nanmax(seen) + 2)
    axes.set_ylim(max(bottom, -2), min(top, 102))
    return figure


def win_rates_between(run: Run, theme: Theme) -> Figure | None:
    """A figure of the win rates of every iterate (row) against every other (column)."""
    iterates, cells = win_matrix(run)
    n = len(iterates)
    if n < 2:
        return None
    values = np.full((n, n), np.nan)
    for i, t in enumerate(iterates):
        for j, s in enumerate(iterates):
            values[i, j] = cells.get((t, s), NOTHING).mean
    enough = all(
        e.n_prompts is None or e.n_prompts >= LEAST_PROMPTS for e in run.evaluations.values()
    )
    excludes = np.array(
        [[enough and cells.get((t, s), NOTHING).excludes(0.5) for s in iterates] for t in iterates]
    )
    names = list(map(str, iterates))
    return heat_map(theme, names, values, excludes, "iterate", "against iterate")


def training(run: Run, theme: Theme) -> Figure | None:
    """A figure of loss, rewards, accuracy and gradient norm by step over all iterations."""
    runs = train_runs(run)
    if not runs:
        return None
    figure = new_figure(theme, 5.6)
    panels: list[Axes] = figure.subplots(2, 2, sharex=True).ravel().tolist()
    one, two, three = theme.colours[0], theme.colours[2], theme.colours[4]
    _steps(panels[0], theme, runs, "loss", one)
    _steps(panels[1], theme, runs, "rewards/chosen", two, "chosen")
    _steps(panels[1], theme, runs, "rewards/rejected", three, "rejected")
    _steps(panels[1], theme, runs, "rewards/margins", one, "margin")
    _steps(panels[2], theme, runs, "rewards/accuracies", one)
    _steps(panels[3], theme, runs, "grad_norm", one)
    titles = ("Training loss", "Rewards and their margin", "Reward accuracy", "Gradient norm")
    moves = [steps[0] - 0.5 for t, steps, _ in runs if t in reference_moves(run)]
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        dress(axes, theme, title, "optimizer step" if i > 1 else "")
        for _, steps, _ in runs[1:]:
            axes.axvline(steps[0] - 0.5, color=theme.grid, lw=1, zorder=0.5)
        mark_moves(axes, theme, moves, "reference moved" if i == 3 else None)
    panels[2].axhline(0.5, color=theme.muted, lw=1, ls=":", zorder=1)
    panels[3].set_ylim(bottom=0)
    panels[0].set_xlim(0.5, max(runs[-1][1][-1] + 0.5, 2))
    if len(runs) <= 20:
        for t, steps, _ in runs:  # iteration numbers above the first panel's bottom edge
            panels[0].annotate(
                str(t), (float(steps.mean()), 0), (0, 3), ha="center", fontsize=7.5,
                xycoords=("data", "axes fraction"), textcoords="offset points", color=theme.muted,
            )  # fmt: skip
    legend(panels[1], theme)
    if moves:
        legend(panels[3], theme)
    return figure


def _steps(
    axes: Axes, theme: Theme, runs: list[tuple[int, Array, list[Row]]], name: str, colour: str,
    label: str | None = None,
) -> None:  # fmt: skip
    """Draw one metric, a line per iteration so that boundaries are not bridged."""
    for i, (_, steps, rows) in enumerate(runs):
        values = np.array([number(row.get(name)) for row in rows])
        marker = "o" if len(values) <= 20 else ""
        shown = label if i == 0 else None
        if runs[-1][1][-1] > SMOOTH_FROM:
            axes.plot(steps, values, color=colour, lw=0.6, alpha=0.3, zorder=1.5)
            values = smoothed(values)
        axes.plot(steps, values, color=colour, lw=1.3, marker=marker, ms=3, label=shown)


def kl(run: Run, theme: Theme) -> Figure | None:
    """A figure of KL to the initial policy and to the reference, per iterate, with intervals."""
    series: tuple[tuple[str, Callable[[Evaluation], Interval | None]], ...] = (
        ("to the initial policy", lambda e: e.kl_to_initial),
        ("to the reference", lambda e: e.kl_to_reference),
    )
    trained = [e for t, e in run.evaluations.items() if t > 0]  # the initial policy's KL is 0
    if not any(get(e) for _, get in series for e in trained):
        return None
    figure = new_figure(theme, 3.2)
    axes = figure.subplots()
    for k, (label, get) in enumerate(series):
        x = np.array(list(run.evaluations), float) + (-0.05, 0.05)[k]
        mean, low, high = _columns([get(e) or NOTHING for e in run.evaluations.values()])
        colour = theme.colours[(0, 2)[k]]
        points_with_bars(axes, x, mean, low, high, colour, label)
    dress(axes, theme, "KL divergence on held-out prompts", "iterate", "nats per response")
    last = max(run.evaluations)
    moves = [t - 0.5 for t in reference_moves(run) if t <= last]
    mark_moves(axes, theme, moves, "reference moved")
    iterate_axis(axes, 0, last)
    legend(axes, theme)
    return figure


def response_length(run: Run, theme: Theme) -> Figure | None:
    """A figure of the tokens of each held-out response, per iterate."""
    groups = {t: e.lengths for t, e in run.evaluations.items() if len(e.lengths)}
    if not groups:
        return None
    figure = new_figure(theme, 3.4)
    axes = figure.subplots()
    distribution(axes, theme, groups, theme.colours[0])
    dress(axes, theme, "Response length", "iterate", "tokens")
    limit = number(run.option("generation.max_new_tokens"))
    longest = np.concatenate(list(groups.values()))
    from_zero(axes, longest)
    if limit <= 1.5 * longest.max():
        axes.axhline(limit, color=theme.colours[4], lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            "max_new_tokens",
            (1, limit),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=theme.colours[4],
            fontsize=8.5,
        )
        from_zero(axes, np.append(longest, limit))
    iterate_axis(axes, min(groups), max(groups))
    return figure


def fluency(run: Run, theme: Theme) -> Figure | None:
    """A figure of the shares of repeated trigrams and of responses that ended by themselves."""
    groups = {t: e.repetitions for t, e in run.evaluations.items() if len(e.repetitions)}
    finished = {t: e.finished for t, e in run.evaluations.items() if np.isfinite(e.finished)}
    if not groups and not finished:
        return None
    figure = new_figure(theme, 3.1)
    left, right = figure.subplots(1, 2)
    if groups:
        percentages = {t: 100 * values for t, values in groups.items()}
        distribution(left, theme, percentages, theme.colours[0])
        from_zero(left, np.concatenate(list(percentages.values())))
    dress(left, theme, "Repetition", "iterate", "% of word trigrams repeated")
    shares = 100 * np.array(list(finished.values()))
    right.plot(list(finished), shares, "o-", color=theme.colours[0], ms=5, lw=1.3)
    right.set_ylim(0, 105)
    dress(right, theme, "Finished responses", "iterate", "% that ended by themselves")
    for axes in (left, right):
        iterate_axis(axes, 0, max(run.evaluations), most=10)
    return figure


def oracle(run: Run, theme: Theme) -> Figure | None:
    """A figure of the oracle's preference cycles and decisiveness, per iteration."""
    rows = run.phase("judge")
    if not rows:
        return None
    figure = new_figure(theme, 2.8)
    x = [row["iteration"] for row in rows]
    panels = (
        ("oracle/cycle_rate", "Strict preference cycles", "% of prompts"),
        ("oracle/decisiveness", "Decisiveness", "mean |2P − 1|, %"),
    )
    for axes, (name, title, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        values = 100 * np.array([number(row.get(name)) for row in rows])
        axes.plot(x, values, "o-", color=theme.colours[0], ms=5, lw=1.3)
        dress(axes, theme, title, "iteration", unit)
        from_zero(axes, values)
        iterate_axis(axes, min(x), max(x), most=10)
    return figure


def time(run: Run, theme: Theme) -> Figure | None:
    """A figure of the seconds of each phase, one stacked bar an iteration."""
    table = seconds(run)
    if not table:
        return None
    figure = new_figure(theme, 1.3 + 0.36 * len(table))
    axes = figure.subplots()
    left, order = np.zeros(len(table)), list(PHASES)
    for phase in phases(table):
        widths = np.array([row.get(phase, 0.0) for row in table.values()])
        colour = theme.colours[order.index(phase)] if phase in PHASES else theme.muted
        axes.barh(range(len(table)), widths, 0.68, left, color=colour, label=phase,
            edgecolor=theme.paper, lw=0.8)  # fmt: skip
        left += widths
    for i, total in enumerate(left):
        axes.annotate(
            duration(total), (total, i), (5, 0), textcoords="offset points", va="center",
            color=theme.ink, fontsize=8.5,
        )  # fmt: skip
    dress(axes, theme, "Time by phase", "seconds", "iteration")
    axes.grid(False)
    axes.grid(True, axis="x", color=theme.grid, lw=0.8)
    axes.set_yticks(range(len(table)), map(str, table))
    axes.invert_yaxis()
    axes.set_xlim(0, max(left.max() * 1.16, 1e-9))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False,
        labelcolor=theme.ink, fontsize=8.5, handlelength=1, columnspacing=1.3,
    )  # fmt: skip
    return figure


def _columns(intervals: list[Interval]) -> Array:
    """Mean, low and high, (3, n)."""
    return np.array([[i.mean, i.low, i.high] for i in intervals]).reshape(-1, 3).T


FIGURES: dict[str, tuple[Callable[[Run, Theme], Figure | None], str]] = {
    "win_rate": (win_rate, "Win rate of every iterate against the initial policy"),
    "win_matrix": (win_rates_between, "Win rate of every iterate against every other"),
    "training": (training, "Loss, rewards, accuracy and gradient norm by optimizer step"),
    "kl": (kl, "KL divergence to the initial policy and to the reference by iterate"),
    "response_length": (response_length, "Distribution of response lengths by iterate"),
    "fluency": (fluency, "Repetition and share of finished responses by iterate"),
    "oracle": (oracle, "Oracle cycle rate and decisiveness by iteration"),
    "time": (time, "Seconds of each phase by iteration"),
}
"""File name → (function, what the picture shows)."""
