"""A snapshot as a screen of text, of whatever width there is."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from comal_fast.system.terminal import duration
from comal_fast.watch.snapshot import Phase, Snapshot

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = {  # of the table of iterates → columns of the screen from which it is shown
    "π": 0,
    "win rate": 0,
    "95 %": 0,
    "KL": 44,
    "length": 70,
    "loss": 70,
    "margin": 70,
    "time": 44,
}
LATEST = 12  # iterations shown


def screen(shot: Snapshot, width: int) -> RenderableType:
    """All of it."""
    state = "running" if shot.running and shot.phase else shot.state  # the phase says the rest
    head = Text.assemble((shot.name, "bold"), "  ", (state, _colour(shot)))
    parts: list[RenderableType] = [head, Text(f"{shot.model}, {shot.method}", style="dim")]
    if shot.phase is not None:
        parts += [Text(), *_phase(shot.phase, shot, width)]
    parts.append(Text(_times(shot)))
    known = {n: values for n, values in shot.curves.items() if any(map(math.isfinite, values))}
    curves = [_curve(name, values, width) for name, values in known.items()]
    if curves:
        parts += [Text(), *curves]
    if len(shot.iterates) > 1 or (shot.iterates and shot.iterates[0]["iteration"]):
        parts += [Text(), _table(shot.iterates, width)]
    parts += [Text(f"! {line}", style="yellow") for line in shot.diagnoses]
    return Group(*parts)


def _colour(shot: Snapshot) -> str:
    return "green" if shot.running else "bold" if shot.state == "finished" else "yellow"


def _phase(phase: Phase, shot: Snapshot, width: int) -> list[RenderableType]:
    of = f" of {shot.iterations}" if shot.iterations else ""
    line = Text(f"iteration {phase.iteration}{of}: ")
    line.append(phase.name, style="bold")
    if phase.total is None or phase.done is None:
        return [line]
    line.append(f"  {phase.done:,.0f} of {phase.total:,.0f} {phase.unit}")
    if phase.rate:
        line.append(f", {phase.rate:,.3g} {phase.unit}/s")
    if phase.seconds_left is not None:
        line.append(f", {duration(phase.seconds_left)} left")
    bar = ProgressBar(phase.total, phase.done, width=min(width, 60))
    return [line, Padding(bar, 0, expand=False)]


def _times(shot: Snapshot) -> str:
    said = [f"so far {duration(shot.seconds)}"]
    if shot.running:
        left = shot.seconds_left
        said.append("left: known after iteration 1" if left is None else f"left {duration(left)}")
    if shot.peak_gib:
        said.append(f"peak memory {shot.peak_gib:.2f} GiB")
    if shot.tokens_per_s:
        said.append(f"{shot.tokens_per_s:,.0f} tokens/s")
    return ", ".join(said)


def _curve(name: str, values: list[float], width: int) -> Text:
    """A measure's latest value and a line of bars from its least to its largest."""
    room = max(8, min(len(values), width - 32))
    shown = values[-room:]
    finite = [v for v in shown if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        place = (value - low) / (high - low) if high > low else 0.0
        return _BARS[round(place * (len(_BARS) - 1))]

    last = f"{values[-1]:.4g}" if math.isfinite(values[-1]) else "not finite"
    return Text.assemble(
        f"{name:<16} ", (f"{last:>10}", "bold"), "  ", ("".join(map(bar, shown)), "cyan")
    )


def _table(rows: list[dict[str, Any]], width: int) -> Table:
    shown = [name for name, least in _COLUMNS.items() if width >= least]
    table = Table(box=None, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[-LATEST:]:
        rate = row.get("win_rate")
        low, high = rate["ci95"] if rate else (None, None)
        cells = {
            "π": str(row["iteration"]),
            "win rate": _number(rate and rate["mean"], ".1%"),
            "95 %": f"{low:.1%} – {high:.1%}" if rate else "–",
            "KL": _number(row.get("kl_to_initial"), ".3g"),
            "length": _number(row.get("response_length"), ".0f"),
            "loss": _number(row.get("loss"), ".4g"),
            "margin": _number(row.get("margin"), ".3g"),
            "time": duration(row["seconds"]),
        }
        table.add_row(*(cells[name] for name in shown))
    return table


def _number(value: Any, form: str) -> str:
    good = isinstance(value, int | float) and math.isfinite(value)
    return format(value, form) if good else "–"
