"""What `comal-fast game` does: solve one game, compare all algorithms on it, or on many."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from comal_fast.errors import InputError
from comal_fast.game.compare import (
    CRITERIA,
    FIXED_LABELS,
    LABELS,
    Entry,
    fixed_settings,
    lineup,
    same_curves,
)
from comal_fast.game.nash import is_unique, nash_policy
from comal_fast.game.preference import PAPER_START, Array, Game, paper_game
from comal_fast.game.report import (
    LARGEST,
    OPTIONS,
    Outcome,
    comparison_json,
    comparison_table,
    measure,
    overview_table,
    policy_table,
    step_table,
    to_json,
)
from comal_fast.game.solvers import SOLVERS
from comal_fast.game.study import (
    STUDY_COLUMNS,
    against_fixed,
    run_study,
    study_games,
    study_json,
    study_table,
)
from comal_fast.game.trajectory import DEFAULT_ETA, DEFAULT_TAU
from comal_fast.store.files import check_target, write_all
from comal_fast.system.terminal import Bar

DEFAULT_PLOT = "game.png"
PAPER = "the game of the paper"
RAW_LARGEST = 50  # responses, up to which dpo-raw takes a minute at most in a comparison


@dataclass(frozen=True)
class Outputs:
    """Files to write, None for none."""

    json: str | None
    plot: str | None


@dataclass(frozen=True)
class Settings:
    """What every algorithm of a comparison shares: outer × inner oracle calls each."""

    eta: float
    tau: float
    outer: int
    inner: int

    def __str__(self) -> str:
        return f"η {self.eta:g}, τ {self.tau:g}, {self.outer} × {self.inner} oracle calls each"


_SETTINGS = {
    "paper": Settings(DEFAULT_ETA, DEFAULT_TAU, 40, 50),
    "other": Settings(1.0, 0.03, 200, 100),
    "study": Settings(1.0, 0.03, 1000, 100),
}


def settings(
    kind: str, eta: float | None, tau: float | None, outer: int | None, inner: int | None
) -> Settings:
    """The settings given; for those that are None the defaults of "paper", "other" or "study"."""
    given = {"eta": eta, "tau": tau, "outer": outer, "inner": inner}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(_SETTINGS[kind], **changes)


def defaults(algorithm: str) -> dict[str, Any]:
    """The options that the solver's signature lists, with their defaults."""
    parameters = inspect.signature(SOLVERS[algorithm]).parameters
    return {name: parameters[name].default for name in OPTIONS if name in parameters}


def solve(
    console: Console,
    game: Game,
    label: str,
    start: Array,
    algorithm: str,
    options: dict[str, Any],
    outputs: Outputs,
) -> None:
    """Run one solver on one game: print its steps and last policy, write the files asked for."""
    nash = _nash(game)
    outcome, path = _play(game, Entry(algorithm, algorithm, options), start, nash, console)
    contents = {}
    if outputs.json is not None:
        contents[outputs.json] = to_json(outcome)
    if outputs.plot is not None:
        contents[outputs.plot] = _picture([outcome], [path], outputs.plot, label)
    write_all(contents)

    shown = ", ".join(
        f"{name} {value if isinstance(value, str | bool) else format(value, 'g')}"
        for name, value in options.items()
        if value is not None
    )
    console.print(Text(f"{algorithm} on {label}: {shown}\n"))
    console.print(step_table(outcome))
    console.print()
    columns = {} if nash is None else {"Nash": nash}
    console.print(policy_table(game.names, {**columns, f"{algorithm}, last": outcome.policy}))
    _notes(console, game, nash)
    _print_written(console, contents)


def overview(console: Console) -> None:
    """Run three solvers on the game of the paper; writes game.png in the current folder."""
    check_target(DEFAULT_PLOT, "--plot")
    game = paper_game()
    nash = nash_policy(game.matrix)
    start = np.array(PAPER_START)
    runs = [
        _play(game, Entry(name, name, defaults(name)), start, nash, console)
        for name in ("comal", "inpo", "ipo")
    ]
    outcomes, paths = [outcome for outcome, _ in runs], [path for _, path in runs]
    contents = {DEFAULT_PLOT: _picture(outcomes, paths, DEFAULT_PLOT, PAPER)}
    write_all(contents)

    console.print(f"{PAPER}, from ({', '.join(map(str, PAPER_START))})\n")
    console.print(overview_table(outcomes))
    console.print()
    console.print(
        policy_table(game.names, {"Nash": nash, **{o.algorithm: o.policy for o in outcomes}})
    )
    _print_written(console, contents)


def compare(
    console: Console, game: Game, label: str, start: Array, shared: Settings, outputs: Outputs
) -> None:
    """Run every algorithm on one game: the table of verdicts, gap curves, paths where n = 3."""
    nash = _nash(game)
    raw = len(game.names) <= RAW_LARGEST
    entries = lineup(shared.eta, shared.tau, shared.outer, shared.inner, raw=raw)
    runs = [_play(game, entry, start, nash, console) for entry in entries]
    outcomes, paths = [outcome for outcome, _ in runs], [path for _, path in runs]
    contents = {}
    if outputs.json is not None:
        contents[outputs.json] = comparison_json(outcomes)
    if outputs.plot is not None:
        from comal_fast.game.plot import image_format, render
        from comal_fast.game.plot_many import draw_comparison

        groups = same_curves([o.trajectory.policies for o in outcomes])
        figure = draw_comparison(
            [_merged([outcomes[i] for i in group], paths[group[0]]) for group in groups],
            game.names,
            nash,
            f"Every algorithm on {label}",
        )
        contents[outputs.plot] = render(figure, image_format(outputs.plot))
    write_all(contents)

    console.print(Text(f"{label}: {shared}\n"))
    console.print(comparison_table(outcomes))
    console.print(f"\n{LABELS} {CRITERIA}", highlight=False)
    if not raw:
        console.print(f"\nCOMAL dpo-raw is left out beyond {RAW_LARGEST} responses: too slow.")
    _notes(console, game, nash)
    _print_written(console, contents)


def study(
    console: Console,
    count: int,
    seed: int,
    shared: Settings,
    outputs: Outputs,
    *,
    fixed: bool = False,
) -> None:
    """Run every algorithm but dpo-raw on `count` random games: the table of verdicts.

    fixed: COMAL auto and COMAL at fixed settings instead, and how the first compares. Raises
    InputError for `count` < 1 or `seed` < 0.
    """
    if count < 1:
        raise InputError(f"--study {count}: it must be a number of games, at least 1")
    if seed < 0:
        raise InputError(f"--seed {seed}: it must be a whole number, 0 or more")
    entries = lineup(
        shared.eta, shared.tau, shared.outer, shared.inner, every=shared.inner, raw=False
    )
    if fixed:
        entries = fixed_settings(shared.outer, shared.inner)
    games = study_games(count, seed)
    with Bar(console, "study", len(entries) * count) as advance:
        results = run_study(games, entries, advance)
    contents = {}
    if outputs.json is not None:
        contents[outputs.json] = study_json(games, seed, results)
    if outputs.plot is not None:
        from comal_fast.game.plot import image_format, render
        from comal_fast.game.plot_many import draw_study

        figure = draw_study(results, f"{count} random games of 3 to 50 responses")
        contents[outputs.plot] = render(figure, image_format(outputs.plot))
    write_all(contents)

    sizes = [len(game.names) for game in games]
    options = f"{shared.outer} × {shared.inner} oracle calls each" if fixed else shared
    console.print(
        f"{count} random games of {min(sizes)} to {max(sizes)} responses, seed {seed}, from the "
        f"uniform policy: {options}\n", highlight=False
    )  # fmt: skip
    console.print(study_table(results))
    labels = FIXED_LABELS if fixed else LABELS
    console.print(f"\n{labels} {CRITERIA} {STUDY_COLUMNS}", highlight=False)
    if fixed:
        chosen = against_fixed(results)
        console.print(
            f"\nCOMAL auto takes at most twice the calls of the best of the fixed settings, "
            f"{chosen.best}, on {chosen.within_best:.0%} of the {chosen.games} games that any of "
            f"them solves; of whichever setting is fastest on each game, on "
            f"{chosen.within_each:.0%}.", highlight=False
        )  # fmt: skip
    _print_written(console, contents)


def _play(
    game: Game, entry: Entry, start: Array, nash: Array | None, console: Console
) -> tuple[Outcome, Array]:
    """The measured outcome, and every iterate (steps + 1, n) where n is 3."""
    path: list[Array] = [start]
    keep = len(start) == 3
    total = entry.options["outer"] * entry.options.get("inner", 1)
    with Bar(console, entry.label, total) as advance:

        def on_step(log_policy: Array) -> None:
            if keep:
                path.append(np.exp(log_policy))
            advance()

        trajectory = entry.play(game.matrix, start, on_step)
    return measure(game, entry.label, entry.options, nash, trajectory), np.array(path)


def _nash(game: Game) -> Array | None:
    return nash_policy(game.matrix) if len(game.names) <= LARGEST else None


def _notes(console: Console, game: Game, nash: Array | None) -> None:
    if nash is None:
        console.print(f"\nThe Nash policy is not computed for more than {LARGEST} responses.")
    elif not is_unique(game.matrix, nash):
        console.print("\nThe Nash policy is not unique; KL is to the one shown.")


def _picture(outcomes: list[Outcome], paths: list[Array], target: str, label: str) -> bytes:
    from comal_fast.game.plot import Curve, draw, image_format, render  # matplotlib is slow to load

    curves = [
        Curve(o.algorithm.upper(), o.trajectory.steps, o.gap, o.kl, path)
        for o, path in zip(outcomes, paths, strict=True)
    ]
    title = ", ".join(curve.label for curve in curves) + f" on {label}"
    figure = draw(curves, outcomes[0].game.names, outcomes[0].nash, title)
    return render(figure, image_format(target))


def _merged(outcomes: list[Outcome], path: Array) -> Any:
    """One curve over oracle calls for algorithms whose iterates are the same."""
    from comal_fast.game.plot import Curve

    first = outcomes[0]
    label = first.algorithm
    if len(outcomes) > 1:
        prefix = "COMAL "
        names = [o.algorithm.removeprefix(prefix) for o in outcomes]
        label = prefix + " = ".join(names)
    return Curve(label, first.trajectory.calls, first.gap, first.kl, path, first.verdict)


def _print_written(console: Console, contents: dict[str, bytes]) -> None:
    for name in contents:
        console.print(Text(f"wrote {name}", style="dim"), soft_wrap=True)
