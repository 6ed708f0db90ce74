"""What a run is doing and how it fares, from its directory alone; another process may be at it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comal_fast.report.facts import model_name
from comal_fast.report.load import Run, load_run
from comal_fast.runs.listing import is_taken, state
from comal_fast.store.directory import PHASES, RunDirectory

CURVE = 60  # steps of a curve


@dataclass(frozen=True)
class Phase:
    """The phase at work. `done` and `total` are in `unit`s; None before the first was counted."""

    name: str
    iteration: int
    done: float | None
    total: float | None
    unit: str
    rate: float | None
    """Units a second."""
    seconds_left: float | None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment; None, or NaN in a curve, for what is not known yet."""

    name: str
    model: str
    method: str
    state: str
    """As `comal-fast runs` says it."""
    running: bool
    iterations: int | None
    phase: Phase | None
    seconds: float
    """Of all phases so far."""
    seconds_left: float | None
    """Of the run: by what its phases took in the iterations before; None in the first."""
    curves: dict[str, list[float]]
    """Measure → its latest training steps, of the iteration at work."""
    iterates: list[dict[str, Any]]
    """A row an iteration: loss, KL, win rate with its interval, length, seconds."""
    peak_gib: float | None
    tokens_per_s: float | None
    diagnoses: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        return asdict(self)


def snapshot(path: Path) -> Snapshot:
    """Look at it now. Raises InputError where `path` is no run directory."""
    run, directory = load_run(path), RunDirectory(path)
    running = is_taken(path)
    total = run.option("algorithm.iterations")
    options = {"algorithm.iterations": total if total is not None else "?"}
    finished = run.summary if run.summary and not running else None
    phase = _phase(directory.progress, run) if running else None
    steps = run.phase("train")
    now = max((r["iteration"] for r in steps), default=0)
    rows = [r for r in steps if r["iteration"] == now]
    return Snapshot(
        name=path.resolve().name,
        model=model_name(run),
        method=_method(run),
        state=state(directory, finished, options),
        running=running,
        iterations=total,
        phase=phase,
        seconds=sum(float(r.get("perf/seconds") or 0) for r in run.rows),
        seconds_left=_left(run, phase, total) if running else None,
        curves={name: _curve(rows, name) for name in ("loss", "rewards/margins", "grad_norm")},
        iterates=_iterates(run),
        peak_gib=max((float(r.get("mem/peak_gib") or 0) for r in run.rows), default=None),
        tokens_per_s=next((r["perf/tokens_per_s"] for r in reversed(rows) if _given(r)), None),
        diagnoses=[
            f"iteration {d.iteration}, {d.name} ({d.action}): {d.text}" for d in run.diagnoses
        ],
    )


def _given(row: Any) -> bool:
    return isinstance(row.get("perf/tokens_per_s"), int | float)


def _method(run: Run) -> str:
    method = run.option("algorithm.method", "mirror")
    how = "" if method == "mirror" else f" by {method}"
    return f"{run.option('algorithm.prox', '?')}{how}, seed {run.option('seed', '?')}"


def _phase(path: Path, run: Run) -> Phase | None:
    """What the process at work says of itself; between two phases, the one it logged last."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        done, total, seconds = (told.get(key) for key in ("done", "total", "seconds"))
        rate = done / seconds if done and seconds else None
        left = (total - done) / rate if rate and total else None
        unit = str(told.get("unit", ""))
        return Phase(told["phase"], int(told["iteration"]), done, total, unit, rate, left)
    except (OSError, ValueError, KeyError, TypeError):
        if not run.rows:
            return None
        last = run.rows[-1]
        return Phase(last["phase"], last["iteration"], None, None, "", None, None)


def _left(run: Run, phase: Phase | None, total: Any) -> float | None:
    """Seconds of the run that are left, if each phase takes as long as it did in the mean."""
    if not isinstance(total, int) or phase is None:
        return None
    took: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in run.rows:
        if row["iteration"] and isinstance(row.get("perf/seconds"), int | float):
            took[row["phase"]][row["iteration"]] += row["perf/seconds"]
    mean = {
        name: sum(some.values()) / len(some)
        for name in PHASES
        if (some := {t: s for t, s in took[name].items() if (name, t) != _own(phase)})
    }
    asked = [name for name in PHASES if name in mean or not run.option("data.pairs")]
    if any(name not in mean for name in asked if name != phase.name):
        return None  # an iteration that is not over yet
    if phase.seconds_left is None and phase.name not in mean:
        return None
    here = phase.seconds_left if phase.seconds_left is not None else mean[phase.name]
    after = asked[asked.index(phase.name) + 1 :] if phase.name in asked else []
    later = max(0, total - phase.iteration)
    whole = sum(mean.get(name, here) for name in asked)
    return here + sum(mean[name] for name in after) + later * whole


def _own(phase: Phase) -> tuple[str, int]:
    return phase.name, phase.iteration


def _curve(rows: list[Any], name: str) -> list[float]:
    values = [row.get(name) for row in rows]
    return [float(v) if isinstance(v, int | float) else math.nan for v in values][-CURVE:]


def _iterates(run: Run) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in run.rows:
        own = found[row["iteration"]]
        own["seconds"] = own.get("seconds", 0.0) + float(row.get("perf/seconds") or 0)
        if row["phase"] == "train" and "loss" in row:
            own["loss"] = row["loss"]
            own["margin"] = row.get("rewards/margins")
        if row["phase"] == "judge":
            own["cycle_rate"] = row.get("oracle/cycle_rate")
    for t, evaluation in run.evaluations.items():
        own = found[t]
        own["response_length"] = evaluation.length
        if evaluation.kl_to_initial is not None:
            own["kl_to_initial"] = evaluation.kl_to_initial.mean
        if (rate := evaluation.win_rates.get(0)) is not None:
            own["win_rate"] = {"mean": rate.mean, "ci95": [rate.low, rate.high]}
    return [{"iteration": t, **found[t]} for t in sorted(found)]
