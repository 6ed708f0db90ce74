"""The outer loop: every phase of every iteration, then the summary and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from comal_fast.config import Config
from comal_fast.config.fixed_point import other_game
from comal_fast.config.plugins import sources
from comal_fast.config.validate import check_cpu, check_ranks, check_trainable, needs_samples
from comal_fast.context import Context
from comal_fast.distributed import collective
from comal_fast.distributed.collective import dismiss
from comal_fast.errors import InputError
from comal_fast.oracles import make_oracle
from comal_fast.phases import diagnose, evaluate, generate, given, judge, logps, pair, train
from comal_fast.phases.diagnose import Ending
from comal_fast.plan.check import check_device
from comal_fast.report import write_report
from comal_fast.sinks.follow import following, make_sinks
from comal_fast.statistics import to_interval
from comal_fast.store.artefacts import make_key
from comal_fast.store.directory import PHASES
from comal_fast.store.files import check_folder, locked
from comal_fast.store.metrics import Row
from comal_fast.system.doing import doing
from comal_fast.system.machine import device_name, named_nondeterminism, versions
from comal_fast.system.peak import reset_peak
from comal_fast.system.processes import run_apart
from comal_fast.system.ranks import world
from comal_fast.system.terminal import console, telling
from comal_fast.training.trainer import Diverged

RUN: dict[str, Callable[[Context, int], None]] = {
    "generate": generate.run,
    "judge": judge.run,
    "pair": pair.run,
    "logps": logps.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "diagnose": diagnose.run,
}


def run_all(config: Config) -> dict[str, Any]:
    """COMAL from the initial policy to the last iterate; what is done already is not done again.

    A diagnostic may end it earlier. Given again, the same command ends at the same place; with that
    diagnostic set to `warn`, it goes on from there. Returns summary.json.
    """
    check_trainable(config)
    with open_run(config) as context:
        if reason := other_game(config):
            console.print(f"  [yellow]![/] {reason}", soft_wrap=True)
        context.directory.summary.discard()  # of an earlier, shorter run
        phase = phase_runner(context)
        if evaluate.iterates(config):
            phase("evaluate", 0)
        evaluated = evaluate.iterates(config)
        names = phases_of(config)
        end: Ending | None = None
        for iteration in range(1, config.algorithm.iterations + 1):
            try:
                for name in names:
                    if name != "evaluate" or iteration in evaluated or config.data.pairs:
                        phase(name, iteration)
            except Diverged as error:
                if config.diagnostics.divergence != "rollback":
                    raise
                end = Ending("rollback", "divergence", str(error), iteration - 1)
            else:
                end = diagnose.ending(context, iteration)
            if end:
                break
        if evaluated:
            phase("evaluate", end.result if end else iteration)  # if it was not
        summary = write_summary(context, iteration, end)
        report = write_report(context.directory.path) if config.evaluation.report else None
    print_summary(summary, config)
    if report:
        console.print(f"report: {report}")
    return summary


def phases_of(config: Config) -> list[str]:
    """What an iteration runs: of pairs that people judged nothing is sampled or judged."""
    judged = config.data.pairs is not None
    return [name for name in PHASES if not (judged and name in ("generate", "judge"))]


def run_phase(config: Config, phase: str, iteration: int | None) -> None:
    """Run one phase, of the given iteration or of the first whose model is not there yet.

    Raises InputError for an iteration that the run has not; 0 is for `evaluate` alone.
    """
    if phase not in phases_of(config):
        raise InputError(f"{phase}: people judged data.pairs already; the first phase is pair")
    if iteration == 0 and not evaluate.iterates(config):
        raise InputError("--iteration: without an oracle there is nothing to evaluate of π_0")
    if phase == "train":
        check_trainable(config)
    with open_run(config) as context:
        last = config.algorithm.iterations
        if iteration is None:
            trained = context.directory.trained()
            iteration = next((t for t in range(1, last) if t not in trained), last)
        if not (phase == "evaluate" and iteration == 0) and not 1 <= iteration <= last:
            raise InputError(
                f"--iteration: {iteration} is outside 1 … {last} (algorithm.iterations)"
            )
        run_here(context, phase, iteration)


def phase_runner(context: Context) -> Callable[[str, int], None]:
    """What runs a phase of an iteration: here, or in a process of its own (`phases`)."""
    wanted, here = context.config.phases, partial(run_here, context)
    cuda = context.device.type == "cuda" and world() == 1
    if wanted == "process" or (wanted == "auto" and cuda):
        return partial(run_apart, run_here, context)
    return here


def run_here(context: Context, phase: str, iteration: int) -> None:
    """Run one phase of one iteration in this process."""
    reset_peak(context.device)
    progress = context.directory.progress
    with (
        named_nondeterminism(),
        doing(f"{phase}, iteration {iteration}"),
        telling(progress, phase, iteration),
    ):
        RUN[phase](context, iteration)


@contextmanager
def open_run(config: Config) -> Iterator[Context]:
    """Yield the context of a run whose directory is this process's alone.

    Its inputs are read before it is written. Raises InputError where one is wrong, or where another
    process has the directory.
    """
    check_ranks(config, world())
    check_folder(Path(config.output_dir), "output_dir")
    context = Context(config)
    if context.directory.cleaned.exists():
        raise InputError(
            f"output_dir {context.directory}: `comal-fast clean` deleted weights that going on "
            "takes; give another output_dir"
        )
    if context.device.type == "cpu":
        check_cpu(config)
    check_device(config, context.device)
    if needs_samples(config):
        make_oracle(config.oracle)  # says what it lacks, before anything is sampled
    make_sinks(config)
    context.check_sizes()
    if config.data.pairs is not None:
        given.check_held_out(context)
    taken = f"output_dir {context.directory}: another comal-fast is at work in it"
    with locked(context.directory.path, "output_dir", taken):
        context.write_headers()
        context.directory.restore_metrics()
        context.directory.progress.unlink(missing_ok=True)  # of a process that was killed
        with following(context):
            yield context
    dismiss()


def serve(config: Config) -> None:
    """On ranks other than 0: do their part of what rank 0 runs, until it is done."""
    collective.serve(Context(config))


def write_summary(context: Context, last: int, end: Ending | None) -> dict[str, Any]:
    """Write summary.json after iteration `last`, and return it."""
    result = end.result if end else last
    rows = [r for r in context.directory.rows() if r["iteration"] <= last]
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        seconds[row["phase"]] += row["perf/seconds"]
    cycles = [r["oracle/cycle_rate"] for r in rows if r["phase"] == "judge"]
    summary = {
        "win_rate": _win_rate(context, result),
        "cycle_rate": sum(cycles) / len(cycles) if cycles else None,
        "pairs": _pairs(context, result),
        "seconds": dict(seconds),
        "sampling": _sampling(rows),
        "seed": context.config.seed,
        "iterations": last,
        "result": result,
        "ended": {"action": end.action, "by": end.name, "text": end.text} if end else None,
        "findings": diagnose.findings(context, last),
        "versions": versions(),
        "plugins": sources(context.config.plugins),
        "device": device_name(context.device),
    }
    context.directory.summary.write(summary, make_key("summary", summary))
    return summary


def _sampling(rows: list[Row]) -> dict[str, float] | None:
    """What sampling took of the phases that sample; None where nothing was sampled."""
    sampled = [row for row in rows if row.get("perf/sampled_tokens")]
    if not sampled:
        return None
    seconds = sum(row["perf/sampling_seconds"] for row in sampled)
    tokens = sum(row["perf/sampled_tokens"] for row in sampled)
    return {
        "seconds": seconds,
        "share": seconds / sum(row["perf/seconds"] for row in rows),
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
    }


def _pairs(context: Context, result: int) -> dict[str, Any] | None:
    """Of held-out pairs, where there are `data.pairs`: accuracy and margin, None of π_0."""
    if context.config.data.pairs is None or not result:
        return None
    return context.directory.iteration(result).pair_evaluation.read()


def _win_rate(context: Context, result: int) -> dict[str, Any] | None:
    """The resulting iterate's win rate against the initial policy: `mean`, `ci95`, `n_prompts`.

    None without an oracle.
    """
    if not needs_samples(context.config):
        return None
    evaluation = context.directory.iteration(result).evaluation.read()
    rate = evaluation["win_rates"].get("0", {"mean": 0.5, "ci95": [0.5, 0.5]})  # π_0 itself
    return {
        "mean": rate["mean"],
        "ci95": rate["ci95"],
        "n_prompts": evaluation["n_prompts"],
    }


def print_summary(summary: dict[str, Any], config: Config) -> None:
    """Print the one table at the end."""
    win, seconds, ended = summary["win_rate"], summary["seconds"], summary["ended"]
    pairs, cycles = summary["pairs"], summary["cycle_rate"]
    table = Table(title=f"{config.output_dir}: seed {summary['seed']}", show_header=False)
    rows = []
    if win:
        low, high = win["ci95"]
        rate = f"{win['mean']:.1%}  95 % [{low:.1%}, {high:.1%}]"
        rows += [
            (f"held-out win rate, iterate {summary['result']} against initial", rate),
            ("held-out prompts", str(win["n_prompts"])),
        ]
    if pairs:
        (low, high), margin = pairs["accuracy"]["ci95"], to_interval(pairs["margin"])
        assert margin is not None
        rate = f"{pairs['accuracy']['mean']:.1%}  95 % [{low:.1%}, {high:.1%}]"
        rows += [
            (f"accuracy on {pairs['pairs']} held-out pairs", rate),
            (
                "their margin, nats",
                f"{margin.mean:.3f}  95 % [{margin.low:.3f}, {margin.high:.3f}]",
            ),
        ]
    if cycles is not None:
        rows += [("prompts with a preference cycle", f"{cycles:.1%}")]
    rows += [
        ("prox, iterations", f"{config.algorithm.prox}, {summary['iterations']}"),
        ("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
        ("seconds in all", f"{sum(seconds.values()):.0f}"),
    ]
    if sampling := summary["sampling"]:
        spoken = "{share:.0%} of them, {seconds:.0f} s; {tokens_per_s:,.0f} tokens/s"
        rows += [("sampling took", spoken.format(**sampling))]
    rows += [
        ("device", summary["device"]),
    ]
    rows += [("diagnostics", _fired(summary["findings"]))]
    if ended:
        rows += [(f"{ended['action']}, after iteration {summary['iterations']}", ended["text"])]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _fired(findings: list[dict[str, Any]]) -> str:
    """Which diagnostics fired, and in which iterations."""
    iterations: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        iterations[finding["name"]].append(str(finding["iteration"]))
    fired = (f"{name} in iteration {', '.join(where)}" for name, where in iterations.items())
    return "; ".join(fired) or "none fired"
