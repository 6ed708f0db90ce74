"""The report's tables, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from comal_fast.figures.page import Table
from comal_fast.report import facts
from comal_fast.report.facts import (
    Verdict,
    empirical_game,
    interval_text,
    iterations,
    model_name,
    peak_memory,
    percent,
    phases,
    seconds,
    unbroken,
    win_matrix,
)
from comal_fast.report.load import Run
from comal_fast.statistics import Interval, number, to_interval
from comal_fast.system.terminal import duration

NONE = "–"


def headline(run: Run, verdict: Verdict) -> list[tuple[str, str]]:
    """(name, value) of the facts under the verdict."""
    rate = verdict.win_rate
    spent = sum(sum(row.values()) for row in seconds(run).values())
    total = iterations(run)
    cycles = _cycle_rate(run)
    return [
        ("Win rate", percent(rate.mean) if rate else NONE),
        ("95% interval", f"{percent(rate.low)} to {percent(rate.high)}" if rate else NONE),
        ("Held-out prompts", NONE if verdict.n_prompts is None else str(verdict.n_prompts)),
        ("Model", model_name(run)),
        ("Prox loss", str(run.option("algorithm.prox", NONE))),
        ("Seed", str(run.option("seed", NONE))),
        ("Iterations", f"{_iterations(run)} of {total if total else '?'}"),
        ("Preference cycles", percent(cycles)),
        ("Diagnostics fired", str(len(run.diagnoses)) if run.diagnosed else NONE),
        ("Time", duration(spent) if spent else NONE),
        ("Peak memory", _gib(peak_memory(run))),
    ]


def _iterations(run: Run) -> int:
    if facts.held_out_pairs(run):
        return int(number(run.summary.get("iterations")))
    return max(run.evaluations, default=0)


def held_out_pairs(run: Run) -> Table | None:
    """Accuracy and margins on pairs that people judged; None without any."""
    pairs = facts.held_out_pairs(run)
    if pairs is None:
        return None
    rows = []
    for name, key, scale in (
        ("Accuracy", "accuracy", "percent"),
        ("Margin, nats", "margin", ""),
        ("Chosen: gain of log-prob, nats", "chosen_logp_gain", ""),
        ("Rejected: gain of log-prob, nats", "rejected_logp_gain", ""),
    ):
        value = to_interval(pairs.get(key))
        if value is not None:
            text = interval_text(value) if scale else _nats(value)
            rows.append((name, text))
    caption = (
        f"{pairs.get('pairs')} held-out pairs of {pairs.get('prompts')} prompts; 95 % intervals "
        "over prompts; a margin is how much more the chosen response's log-prob rose"
    )
    return Table(caption, ("", "mean"), rows)


def _cycle_rate(run: Run) -> float:
    """The rate in summary.json; over the iterations judged so far where it is not there."""
    if math.isfinite(rate := number(run.summary.get("cycle_rate"))):
        return rate
    rates = [number(row.get("oracle/cycle_rate")) for row in run.phase("judge")]
    return sum(rates) / len(rates) if rates else math.nan


def iterates(run: Run) -> Table | None:
    """A table, a row an evaluated iterate; None without any."""
    if not run.evaluations:
        return None
    rows = []
    for t, e in run.evaluations.items():
        rate = e.win_rates.get(0)
        rows.append([
            f"{t}, initial" if t == 0 else str(t),
            _share(rate) if rate and t else NONE,
            _share(e.controlled[0]) if 0 in e.controlled else e.not_comparable.get(0, NONE),
            NONE if e.n_prompts is None else str(e.n_prompts),
            _decimal(e.length, 1), percent(e.repetition), percent(e.finished),
            _nats(e.kl_to_initial), _nats(e.kl_to_reference),
        ])  # fmt: skip
    head = ["Iterate", "Win rate against initial", "At equal length", "Prompts", "Tokens",
            "Repetition", "Finished", "KL to initial", "KL to reference"]  # fmt: skip
    return Table("Held-out evaluation of each iterate (95% intervals)", head, rows)


def win_matrix_table(run: Run) -> Table | None:
    """The annotated matrix as a table, with its intervals; None below two iterates."""
    names, cells = win_matrix(run)
    if len(names) < 2:
        return None
    rows = [
        [str(t), *(_share(cells[t, s]) if (t, s) in cells else NONE for s in names)] for t in names
    ]
    head = ["Iterate", *(f"against {s}" for s in names)]
    caption = "Win rates of rows against columns, with 95% intervals"
    return Table(caption, head, rows, folded=True)


def empirical_game_table(run: Run) -> Table | None:
    """A table of which mixture of the iterates is unbeaten, and what each loses at most."""
    found = empirical_game(run)
    if not found:
        return None
    rows = [
        [
            s.name, percent(s.nash), percent(s.mean), percent(s.exploitability),
            f"{percent(s.interval[0])} to {percent(s.interval[1])}", s.best_opponent or "none",
            s.beaten_by or "none",
        ]
        for s in found
    ]  # fmt: skip
    head = ["Iterate", "Weight in the Nash mixture", "Mean win rate", "Exploitability",
            "95% interval", "Best opponent", "Shown to beat it"]  # fmt: skip
    caption = (
        "The game between the iterates: no iterate beats the Nash mixture; "
        "exploitability is the best opponent's win rate above 50%"
    )
    return Table(caption, head, rows)


def iterations_table(run: Run) -> Table | None:
    """A table of what each iteration sampled, judged and paired; None without any."""
    merged: dict[int, dict[str, Any]] = {}
    for name in ("generate", "judge", "pair", "logps"):
        for row in run.phase(name):
            cells = merged.setdefault(row["iteration"], {})
            cells.update({k: v for k, v in row.items() if not k.startswith("perf/")})
            cells[f"{name} tokens/s"] = row.get("perf/tokens_per_s")
    if not merged:
        return None
    columns: list[tuple[str, str, str]] = [
        ("Responses", "generation/responses", "count"),
        ("Tokens", "generation/response_length", "decimal"),
        ("Finished", "generation/finished", "percent"),
        ("Cycles", "oracle/cycle_rate", "percent"),
        ("Decisiveness", "oracle/decisiveness", "percent"),
        ("Pairs", "comal/pairs", "count"),
        ("Preference", "comal/preference", "percent"),
        ("KL to reference", "comal/kl_to_reference", "decimal"),
        ("Tokens/s generated", "generate tokens/s", "count"),
    ]
    rows = [
        [str(t), *(_cell(merged[t].get(key), kind) for _, key, kind in columns)]
        for t in sorted(merged)
    ]
    head = ["Iteration", *(title for title, _, _ in columns)]
    return Table("Training samples of each iteration", head, rows)


def diagnoses(run: Run) -> Table | None:
    """A table of what fired, on which evidence; None where nothing did."""
    if not run.diagnoses:
        return None
    rows = [[str(d.iteration), d.name.replace("_", " "), d.action, d.text] for d in run.diagnoses]
    head = ["Iteration", "Diagnostic", "Action", "Evidence"]
    return Table("Signs of failure, each with its evidence", head, rows, prose=True)


def diagnoses_line(run: Run) -> str:
    """One sentence on the checks."""
    n = len(run.diagnosed)
    if not n:
        return "No iteration has been checked yet."
    checked = f"{n} iteration{'' if n == 1 else 's'} checked"
    if not run.diagnoses:
        return f"{checked}: no sign of failure."
    names = sorted({d.name.replace("_", " ") for d in run.diagnoses})
    return f"{checked}: {', '.join(names)}."


def time_table(run: Run) -> Table | None:
    """A table of every phase's time in every iteration, with totals and peak memory."""
    table = seconds(run)
    if not table:
        return None
    names = phases(table)
    rows = [
        [str(t), *(duration(row.get(name, math.nan)) for name in names),
         duration(sum(row.values())), _gib(peak_memory(run, t))]
        for t, row in table.items()
    ]  # fmt: skip
    totals = [sum(row.get(name, 0.0) for row in table.values()) for name in names]
    rows.append(["All", *map(duration, totals), duration(sum(totals)), _gib(peak_memory(run))])
    head = ["Iteration", *names, "all phases", "peak memory"]
    return Table("Time of each phase, and peak memory", head, rows, last_is_total=True)


def memory_line(run: Run) -> str:
    """One sentence on peak memory, of all phases and of each."""
    peak = peak_memory(run)
    if not math.isfinite(peak):
        return "No peak memory was recorded."
    peaks = {name: peak_memory(run, phase=name) for name in phases(seconds(run))}
    each = [f"{name} {_gib(x)}" for name, x in peaks.items() if math.isfinite(x)]
    return f"Peak memory: {_gib(peak)} ({', '.join(each)})."


def environment(run: Run) -> list[tuple[str, str]]:
    """(dotted name, value) of env.json, and of what only summary.json knows."""
    found = dict(flatten(run.env))
    known = {key.rsplit(".", 1)[-1] for key in found}
    for key in ("versions", "device"):
        if key in run.summary:
            extra = flatten({key: run.summary[key]})
            found.update({k: v for k, v in extra if k.rsplit(".", 1)[-1] not in known})
    return list(found.items())


def flatten(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """(dotted name, value as text) of every leaf, in order."""
    return list(_leaves(tree, ""))


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield f"{prefix}{key}", "{}"
        else:
            yield f"{prefix}{key}", "none" if value is None else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(value: Any, kind: str) -> str:
    x = number(value)
    if kind == "percent":
        return percent(x)
    return _decimal(x, 0 if kind == "count" else 1)


def _share(rate: Interval) -> str:
    return percent(rate.mean) if rate.low == rate.high else interval_text(rate, short=True)


def _nats(value: Interval | None) -> str:
    if value is None:
        return NONE
    interval = unbroken(f"({_decimal(value.low, 2)} to {_decimal(value.high, 2)})")
    return f"{value.mean:.2f} {interval}"


def _decimal(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else NONE


def _gib(value: float) -> str:
    return f"{value:.2f} GiB" if math.isfinite(value) else NONE
