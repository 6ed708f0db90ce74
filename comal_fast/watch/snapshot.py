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
        return _finite(asdict(self))


def _finite(value: Any) -> Any:
    """The same with None for what is no finite number, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        done, total, rate = (told.get(key) for key in ("done", "total", "rate"))
        left = (total - done) / rate if rate and total else None
        if left is not None:  # its bars are several: of samples, of judgements
            left = max(left, _mean(run).get(told["phase"], 0.0) - told.get("phase_seconds", 0.0))
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
    mean, pairs = _mean(run), run.option("data.pairs")
    asked = [name for name in PHASES if not (pairs and name in ("generate", "judge"))]
    if phase.name not in asked:
        return None
    if any(name not in mean for name in asked if name != phase.name):
        return None  # no iteration is over yet
    here = phase.seconds_left if phase.seconds_left is not None else mean.get(phase.name)
    if here is None:
        return None
    every = int(run.option("evaluation.interval") or 1)

    def comes(name: str, t: int) -> bool:
        return name != "evaluate" or t == total or t % every == 0

    t = phase.iteration
    rest = asked[asked.index(phase.name) + 1 :] if t else []
    left = here + sum(mean[name] for name in rest if comes(name, t))
    for later in range(t + 1, total + 1):
        left += sum(mean.get(name, here) for name in asked if comes(name, later))
    return left


def _mean(run: Run) -> dict[str, float]:
    """Phase → seconds an iteration, of those that are over; of evaluations π_0's if need be."""
    took: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in run.rows:
        if isinstance(row.get("perf/seconds"), int | float):
            took[row["phase"]][row["iteration"]] += row["perf/seconds"]
    last = run.rows[-1] if run.rows else None
    found = {}
    for name, some in took.items():
        over = {t: s for t, s in some.items() if t}
        if name == "train" and last and last["phase"] == name:  # at work, or just over
            over.pop(last["iteration"], None)
        if over := over or ({0: some[0]} if 0 in some else {}):
            found[name] = sum(over.values()) / len(over)
    return found


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
