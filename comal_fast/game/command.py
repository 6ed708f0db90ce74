"""The verb `comal-fast game`: solve a given preference game, or the one of the paper."""

from __future__ import annotations

import argparse
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from comal_fast.game.files import check_target, write_all
from comal_fast.game.nash import is_unique, nash_policy
from comal_fast.game.preference import (
    PAPER_START,
    Array,
    Game,
    check_start,
    load_game,
    paper_game,
)
from comal_fast.game.report import (
    Outcome,
    comparison_table,
    measure,
    policy_table,
    step_table,
    to_json,
)
from comal_fast.game.solvers import SOLVERS

DEFAULT_PLOT = "game.png"
OPTIONS = ("eta", "tau", "outer", "inner")
_QUIET_SECONDS = 1.0  # a run shorter than this shows no progress bar

_DESCRIPTION = """\
Solve a two-player preference game in float64 and compare a solver with the exact Nash policy.
Without arguments: COMAL, INPO and iterative IPO on the 3x3 game of the paper, with game.png."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `game` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "game",
        help="solve a preference game exactly and watch COMAL, INPO or IPO on it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--matrix", metavar="FILE.json",
        help="list of lists, or {'matrix': …, 'names': …}; P[i][j] = P(i beats j) "
        "(default: the game of the paper)")  # fmt: skip
    add("--algorithm", choices=sorted(SOLVERS),
        help="comal: the reference moves every outer step; inpo: it stays at the start; "
        "ipo: no regularisation (default: comal)")  # fmt: skip
    add("--eta", type=float, metavar="F",
        help="KL coefficient of a step, the inverse step size (default: 1/0.3)")  # fmt: skip
    add("--tau", type=float, metavar="F",
        help="KL coefficient of the reference, in (0, eta] (default: 0.1; "
        "not for ipo)")  # fmt: skip
    add("--outer", type=int, metavar="N",
        help="outer steps: reference moves for comal, logged rows for inpo, "
        "iterations for ipo (default: 40; ipo 2000)")  # fmt: skip
    add("--inner", type=int, metavar="N",
        help="mirror-descent steps per outer step (default: 50; not for ipo)")  # fmt: skip
    add("--start", metavar="A,B,C",
        help="first policy and reference (default: uniform; 0.2,0.5,0.3 for the game of the "
        "paper)")  # fmt: skip
    add("--json", metavar="OUT.json",
        help="write nash, policy, duality_gap and kl_to_nash (per outer step, the start first; "
        "an infinite KL is Infinity)")  # fmt: skip
    add("--plot", metavar="OUT.png", help="write a picture (.png, .svg or .pdf)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast game`; returns 0, or raises ValueError before anything is written."""
    names = ("matrix", "algorithm", *OPTIONS, "start", "json", "plot")
    console = Console()
    if all(getattr(args, name) is None for name in names):
        _compare(console)
    else:
        _solve(args, console)
    return 0


def _solve(args: argparse.Namespace, console: Console) -> None:
    """One solver on one game."""
    algorithm = args.algorithm or "comal"
    options = _options(args, algorithm)
    _check_outputs(args)
    game = paper_game() if args.matrix is None else load_game(args.matrix)
    start = _start(args, game)
    outcome, path = _play(game, algorithm, options, start, nash_policy(game.matrix), console)
    contents = {}
    if args.json is not None:
        contents[args.json] = to_json(outcome)
    if args.plot is not None:
        contents[args.plot] = _picture([outcome], [path], args.plot, _label(args.matrix, game))
    write_all(contents)

    settings = ", ".join(f"{name} {value:g}" for name, value in options.items())
    console.print(Text(f"{algorithm} on {_label(args.matrix, game)}: {settings}\n"))
    console.print(step_table(outcome))
    console.print()
    console.print(
        policy_table(game.names, {"Nash": outcome.nash, f"{algorithm}, last": outcome.policy})
    )
    if not is_unique(game.matrix, outcome.nash):
        console.print("\nThe Nash policy is not unique; KL is to the one shown.")
    _print_written(console, contents)


def _compare(console: Console) -> None:
    """Three solvers on the game of the paper, with game.png in the current folder."""
    check_target(DEFAULT_PLOT, "--plot")
    game = paper_game()
    nash = nash_policy(game.matrix)
    runs = []
    for algorithm in ("comal", "inpo", "ipo"):
        start = np.array(PAPER_START)
        runs.append(_play(game, algorithm, _defaults(algorithm), start, nash, console))
    outcomes, paths = [outcome for outcome, _ in runs], [path for _, path in runs]
    contents = {DEFAULT_PLOT: _picture(outcomes, paths, DEFAULT_PLOT, _label(None, game))}
    write_all(contents)

    console.print(f"{_label(None, game)}, from ({', '.join(map(str, PAPER_START))})\n")
    console.print(comparison_table(outcomes))
    console.print()
    console.print(
        policy_table(game.names, {"Nash": nash, **{o.algorithm: o.policy for o in outcomes}})
    )
    _print_written(console, contents)


def _defaults(algorithm: str) -> dict[str, Any]:
    """The options that the solver's signature lists, with their defaults."""
    parameters = inspect.signature(SOLVERS[algorithm]).parameters
    return {name: parameters[name].default for name in OPTIONS if name in parameters}


def _options(args: argparse.Namespace, algorithm: str) -> dict[str, Any]:
    options = _defaults(algorithm)
    for name in OPTIONS:
        value = getattr(args, name)
        if value is None:
            continue
        if name not in options:
            raise ValueError(
                f"--{name} has no effect with --algorithm {algorithm}; leave it out "
                f"({algorithm} takes {', '.join('--' + known for known in options)})"
            )
        options[name] = value
    return options


def _check_outputs(args: argparse.Namespace) -> None:
    if args.json is not None:
        check_target(args.json, "--json")
    if args.plot is not None:
        from comal_fast.game.plot import image_format

        image_format(args.plot)
        check_target(args.plot, "--plot")
    given = [os.path.realpath(name) for name in (args.json, args.plot) if name is not None]
    if len(given) != len(set(given)):
        raise ValueError(f"--plot {args.plot}: the same file as --json; give another name")


def _start(args: argparse.Namespace, game: Game) -> Array:
    n = len(game.names)
    if args.start is None:
        return check_start(PAPER_START if args.matrix is None else None, n)
    values = []
    for i, word in enumerate(args.start.split(",")):
        try:
            values.append(float(word))
        except ValueError:
            raise ValueError(
                f"--start: entry {i} is {word!r}, not a number; give {n} numbers with commas"
            ) from None
    return check_start(values, n, "--start")


def _play(
    game: Game,
    algorithm: str,
    options: dict[str, Any],
    start: Array,
    nash: Array,
    console: Console,
) -> tuple[Outcome, Array]:
    """The measured outcome, and every mirror-descent iterate (steps + 1, n) where n is 3."""
    path: list[Array] = [start]
    keep = len(start) == 3
    total = options["outer"] * options.get("inner", 1)
    with _Bar(console, algorithm, total) as advance:

        def on_step(log_policy: Array) -> None:
            if keep:
                path.append(np.exp(log_policy))
            advance()

        trajectory = SOLVERS[algorithm](game.matrix, start, **options, on_step=on_step)
    return measure(game, algorithm, options, nash, trajectory), np.array(path)


def _picture(outcomes: list[Outcome], paths: list[Array], target: str, label: str) -> bytes:
    from comal_fast.game.plot import Curve, draw, image_format, render  # matplotlib is slow to load

    curves = [
        Curve(o.algorithm.upper(), o.trajectory.steps, o.gap, o.kl, path)
        for o, path in zip(outcomes, paths, strict=True)
    ]
    title = ", ".join(curve.label for curve in curves) + f" on {label}"
    figure = draw(curves, outcomes[0].game.names, outcomes[0].nash, title)
    return render(figure, image_format(target))


def _label(path: str | None, game: Game) -> str:
    if path is None:
        return "the game of the paper"
    return f"{os.path.basename(path)}, {len(game.names)} responses"


def _print_written(console: Console, contents: dict[str, bytes]) -> None:
    for name in contents:
        console.print(Text(f"wrote {name}", style="dim"), soft_wrap=True)


class _Bar:
    """A progress bar that appears on a terminal only when the work lasts."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(console=console, transient=True)
        self._label, self._total, self._done = label, total, 0
        self._enabled = console.is_terminal
        self._task: TaskID | None = None
        self._next = 0.0

    def __enter__(self) -> Callable[[], None]:
        self._next = time.monotonic() + _QUIET_SECONDS
        return self._advance

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def _advance(self) -> None:
        self._done += 1
        if not self._enabled or (now := time.monotonic()) < self._next:
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=self._total)
        self._progress.update(self._task, completed=self._done)
        self._next = now + 0.1
