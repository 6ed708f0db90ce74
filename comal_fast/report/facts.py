"""What a run shows, in numbers and in one sentence."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from comal_fast.compare.tournament import Standing, standings
from comal_fast.config.fixed_point import other_game
from comal_fast.config.load import load_saved
from comal_fast.errors import InputError
from comal_fast.figures import page
from comal_fast.report.load import Row, Run
from comal_fast.statistics import LEAST_PROMPTS, Array, Interval, number, to_interval
from comal_fast.store.directory import PHASES

Outcome = Literal["better", "worse", "open", "none"]


@dataclass(frozen=True)
class Verdict(page.Verdict):
    """Whether the trained policy beats the initial one."""

    iterate: int | None = None
    win_rate: Interval | None = None
    n_prompts: int | None = None


def iterations(run: Run) -> int | None:
    """How many iterations the run is to have."""
    value = run.option("algorithm.iterations")
    return value if isinstance(value, int) else None


def model_name(run: Run) -> str:
    """The model, or its GGUF file, without the folders before its name."""
    file = run.option("model.gguf_file")
    name = str(file or run.option("model.name_or_path", "unnamed model")).rstrip("/")
    return name.rsplit("/", 1)[-1].removesuffix(".gguf")


def verdict(run: Run) -> Verdict:
    """Held-out win rate of the last evaluated iterate against the initial policy.

    From its evaluation.json; from summary.json where that file is missing.
    """
    judged = [t for t, e in run.evaluations.items() if t > 0 and 0 in e.win_rates]
    total, result = iterations(run), run.summary.get("result")
    if ended(run) and result == 0:
        return Verdict("The run was rolled back to the initial policy.", "worse", 0)
    if judged:
        t = result if result in judged else max(judged)
        rate, n_prompts = run.evaluations[t].win_rates[0], run.evaluations[t].n_prompts
    else:
        summary = run.summary.get("win_rate") or {}
        found = to_interval(summary)
        if found is None and (pairs := held_out_pairs(run)):
            return _of_pairs(run, pairs)
        if found is None:
            return Verdict(f"No verdict yet: {progress(run)}.", "none")
        rate, n_prompts = found, summary.get("n_prompts")
        done = run.summary.get("iterations")
        t = done if isinstance(done, int) else total or 1
    outcome, meaning = _meaning(rate, n_prompts)
    unfinished = "" if ended(run) else " (unfinished run)"
    policy = "The final policy" if t == total else f"Iterate {t} of {total or '?'}{unfinished}"
    prompts = "the held-out prompts" if n_prompts is None else f"{n_prompts} held-out prompts"
    seed, prox = run.option("seed", "unknown"), run.option("algorithm.prox", "unknown")
    text = (
        f"{policy} has a win rate of {interval_text(rate)} against the initial one on {prompts} "
        f"(model {model_name(run)}, prox loss {prox}, seed {seed}): {meaning}."
    )
    return Verdict(text, outcome, t, rate, n_prompts)


def held_out_pairs(run: Run) -> dict[str, Any] | None:
    """Accuracy and margin on held-out pairs that people judged; None where there are none."""
    found = run.summary.get("pairs")
    return found if isinstance(found, dict) and to_interval(found.get("accuracy")) else None


def fixed_point(run: Run) -> str | None:
    """Return why the run's settings do not end at the Nash policy of P; None where they do.

    None, too, for a configuration that cannot be read, which other parts of the report say.
    """
    try:
        return other_game(load_saved(run.path / "config.yaml"))
    except InputError:
        return None


def _of_pairs(run: Run, pairs: dict[str, Any]) -> Verdict:
    accuracy = to_interval(pairs["accuracy"])
    assert accuracy is not None
    outcome, meaning = _meaning(accuracy, pairs.get("prompts"))
    text = (
        f"On {pairs.get('pairs')} held-out pairs the final policy has moved towards the chosen "
        f"response in {interval_text(accuracy)} (model {model_name(run)}, prox loss "
        f"{run.option('algorithm.prox', 'unknown')}, seed {run.option('seed', 'unknown')}): "
        f"{meaning}. No oracle was asked, so there is no win rate."
    )
    return Verdict(text, outcome, pairs.get("iterate"))


def _meaning(rate: Interval, count: Any) -> tuple[Outcome, str]:
    if isinstance(count, int) and count < LEAST_PROMPTS:
        return "open", f"too few prompts for a verdict: {count}, it takes {LEAST_PROMPTS}"
    if rate.low > 0.5:
        return "better", "the interval excludes 50%, it lies wholly above"
    if rate.high < 0.5:
        return "worse", "the interval excludes 50%, it lies wholly below"
    if math.isfinite(rate.low) and math.isfinite(rate.high):
        return "open", "the interval includes 50%, so no difference is shown"
    return "open", "no interval was recorded, so no difference is shown"


def progress(run: Run) -> str:
    """Where an unfinished run stands."""
    total = iterations(run)
    started = [t for t, names in run.artefacts.items() if names]
    if not started:
        return "no phase has finished"
    t = max(started)
    names = ", ".join(run.artefacts[t])
    if t == 0:
        return f"only the initial policy is there ({names})"
    return f"iteration {t} of {total or 'an unknown number'} holds {names}"


def ended(run: Run) -> str | None:
    """One sentence where a diagnostic ended the run."""
    end = run.summary.get("ended")
    if not isinstance(end, dict):
        return None
    last, result = run.summary.get("iterations"), run.summary.get("result")
    verb = "rolled back" if end.get("action") == "rollback" else "stopped"
    return (
        f"Ended by a diagnostic after iteration {last} ({end.get('by')}: {end.get('text')}); "
        f"{verb}, so iterate {result} is the result."
    )


def is_finished(run: Run) -> bool:
    """Whether the last iteration that the config asks for was evaluated, or a diagnostic ended."""
    if ended(run) is not None or held_out_pairs(run):
        return True
    return iterations(run) in run.evaluations


def win_matrix(run: Run) -> tuple[list[int], dict[tuple[int, int], Interval]]:
    """The evaluated iterates, and P(row beats column) for each two that were compared."""
    cells: dict[tuple[int, int], Interval] = {}
    for t, evaluation in run.evaluations.items():
        for s, rate in evaluation.win_rates.items():
            if s in run.evaluations and s < t:
                cells[t, s], cells[s, t] = rate, rate.complement()
    for t in run.evaluations:
        cells[t, t] = Interval(0.5, 0.5, 0.5)
    return list(run.evaluations), cells


def empirical_game(run: Run) -> list[Standing]:
    """Standings of the evaluated iterates; none where win rates by prompt are missing."""
    iterates = list(run.evaluations)
    counts = {len(w) for e in run.evaluations.values() for w in e.wins.values()}
    if len(iterates) < 2 or len(counts) != 1 or 0 in counts:
        return []
    wins = np.full((len(iterates), len(iterates), counts.pop()), 0.5)
    for i, t in enumerate(iterates):
        for j, s in enumerate(iterates[:i]):
            if s not in run.evaluations[t].wins:
                return []
            wins[i, j] = run.evaluations[t].wins[s]
            wins[j, i] = 1 - wins[i, j]
    seed, resamples = run.option("seed", 0), run.option("evaluation.bootstrap", 10_000)
    return standings(tuple(map(str, iterates)), wins, resamples, seed)


def reference_moves(run: Run) -> list[int]:
    """The iterations before which the reference became the current policy."""
    every, total = run.option("algorithm.ref_update_interval"), iterations(run)
    if not isinstance(every, int) or every < 1 or total is None:
        return []
    return [t for t in range(2, total + 1) if (t - 1) % every == 0]


def train_runs(run: Run) -> list[tuple[int, Array, list[Row]]]:
    """(iteration, optimizer steps counted over the whole run from 1, rows) per iteration."""
    found, first = [], 1
    rows = [row for row in run.phase("train") if "loss" in row]
    for t, group in itertools.groupby(rows, key=lambda row: row["iteration"]):
        members = list(group)
        found.append((t, np.arange(first, first + len(members), dtype=float), members))
        first += len(members)
    return found


def seconds(run: Run) -> dict[int, dict[str, float]]:
    """{iteration: {phase: seconds}}, iteration 0 being the evaluation of the initial policy."""
    table: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in run.rows:
        spent = number(row.get("perf/seconds"))
        if math.isfinite(spent):
            table[row["iteration"]][row["phase"]] += spent
    return {t: dict(table[t]) for t in sorted(table)}


def phases(table: dict[int, dict[str, float]]) -> list[str]:
    """The phases of `seconds`, in the order in which they run."""
    seen = {name for row in table.values() for name in row}
    return [name for name in PHASES if name in seen] + sorted(seen - set(PHASES))


def peak_memory(run: Run, iteration: int | None = None, phase: str | None = None) -> float:
    """Highest mem/peak_gib of all rows (of one iteration, of one phase), GiB; NaN without any."""
    wanted = {"iteration": iteration, "phase": phase}
    rows = (r for r in run.rows if all(x is None or r[name] == x for name, x in wanted.items()))
    values = [v for r in rows if math.isfinite(v := number(r.get("mem/peak_gib")))]
    return max(values, default=math.nan)


def percent(value: float) -> str:
    """0.632 → 63.2%."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else "–"


def interval_text(rate: Interval, short: bool = False) -> str:
    """A rate as text: 63.2% (95% interval 57.1% to 69.0%).

    `short`: 63.2% (57.1% to 69.0%), where a line may end before the bracket alone.
    """
    if short:
        return f"{percent(rate.mean)} {unbroken(f'({percent(rate.low)} to {percent(rate.high)})')}"
    return f"{percent(rate.mean)} (95% interval {percent(rate.low)} to {percent(rate.high)})"


def unbroken(text: str) -> str:
    """The text with spaces at which no line ends."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
