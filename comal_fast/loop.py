"""The outer loop: every phase of every iteration, then the summary and the report."""

from __future__ import annotations

import fcntl
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table

from comal_fast.artefacts import write_json
from comal_fast.config import Config
from comal_fast.context import Context
from comal_fast.metrics import read_metrics
from comal_fast.phases import evaluate, generate, judge, logps, pair, train
from comal_fast.report import write_report
from comal_fast.terminal import console

PHASES: dict[str, Callable[[Context, int], None]] = {
    "generate": generate.run,
    "judge": judge.run,
    "pair": pair.run,
    "logps": logps.run,
    "train": train.run,
    "evaluate": evaluate.run,
}


def run_all(config: Config) -> dict[str, Any]:
    """COMAL from the initial policy to the last iterate; what is done already is not done again."""
    with open_run(config) as context:
        evaluate.run(context, 0)
        for iteration in range(1, config.algorithm.iterations + 1):
            for phase in PHASES.values():
                phase(context, iteration)
        summary = write_summary(context)
        report = write_report(context.directory)
    print_summary(summary, config)
    console.print(f"report: {report}")
    return summary


def run_phase(config: Config, phase: str, iteration: int | None) -> None:
    """One phase, of the given iteration or of the first whose model is not there yet."""
    with open_run(config) as context:
        if iteration is None:
            last = config.algorithm.iterations
            untrained = (t for t in range(1, last) if not train.path(context, t).exists())
            iteration = next(untrained, last)
        if not (phase == "evaluate" and iteration == 0) and not (
            1 <= iteration <= config.algorithm.iterations
        ):
            raise ValueError(
                f"--iteration: {iteration} is outside 1 … {config.algorithm.iterations} "
                "(algorithm.iterations)"
            )
        PHASES[phase](context, iteration)


@contextmanager
def open_run(config: Config) -> Iterator[Context]:
    """The run directory, for one process at a time; its inputs are read before it is written."""
    context = Context(config)
    context.held_out_prompts()
    context.directory.mkdir(parents=True, exist_ok=True)
    with (context.directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"output_dir {context.directory}: another comal-fast is at work in it"
            ) from None
        context.write_headers()
        yield context


def write_summary(context: Context) -> dict[str, Any]:
    """RUN_DIR/summary.json."""
    import json

    config = context.config
    final = config.algorithm.iterations
    evaluation = json.loads(evaluate.path(context, final).read_text())
    rows = [r for r in read_metrics(context.directory / "metrics.jsonl") if r["iteration"] <= final]
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        seconds[row["phase"]] += row["perf/seconds"]
    cycles = [r["oracle/cycle_rate"] for r in rows if r["phase"] == "judge"]
    summary = {
        "win_rate": {**evaluation["win_rates"]["0"], "n_prompts": evaluation["n_prompts"]},
        "cycle_rate": sum(cycles) / len(cycles),
        "seconds": dict(seconds),
        "seed": config.seed,
        "iterations": final,
        "versions": context.versions(),
        "device": context.device_name(),
    }
    write_json(context.directory / "summary.json", summary)
    return summary


def print_summary(summary: dict[str, Any], config: Config) -> None:
    """The one table at the end."""
    win, seconds = summary["win_rate"], summary["seconds"]
    table = Table(title=f"{config.output_dir}: seed {summary['seed']}", show_header=False)
    low, high = win["ci95"]
    rows = [
        (
            "held-out win rate, final against initial",
            f"{win['mean']:.1%}  95 % [{low:.1%}, {high:.1%}]",
        ),
        ("held-out prompts", str(win["n_prompts"])),
        ("prompts with a preference cycle", f"{summary['cycle_rate']:.1%}"),
        ("prox, iterations", f"{config.algorithm.prox}, {summary['iterations']}"),
        ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
        ("seconds in all", f"{sum(seconds.values()):.0f}"),
        ("device", summary["device"]),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
