"""The verb `comal-fast game`: its options, and what they may be combined with."""

from __future__ import annotations

import argparse
import os
from typing import Any

from rich.console import Console

from comal_fast.errors import InputError
from comal_fast.game import actions, sampled, sampled_actions
from comal_fast.game.families import FAMILIES, load_empirical, make_game
from comal_fast.game.operators import OPERATORS
from comal_fast.game.pair_selection import LABELS, STRATEGIES, TARGETS
from comal_fast.game.payoffs import PAYOFFS, with_payoff
from comal_fast.game.preference import PAPER_START, Array, Game, check_start, load_game
from comal_fast.game.report import OPTIONS
from comal_fast.game.sampled_step import Recipe
from comal_fast.game.solvers import METHODS, SOLVERS
from comal_fast.game.trajectory import check_options
from comal_fast.store.files import check_target
from comal_fast.system import terminal

GAME_OPTIONS = ("matrix", "game", "size", "seed", "empirical", "iteration", "prompt", "payoff")
# what makes it the trainer's sampled step
SAMPLED = ("samples", "pairs", "labels", "target", "log_z")
EVERYTHING = (
    *GAME_OPTIONS,
    "algorithm",
    *OPTIONS,
    "compare",
    "study",
    "settings",
    "start",
    "json",
    "plot",
    *SAMPLED,
)

_DESCRIPTION = """\
Solve a two-player preference game in float64 and compare solvers with the exact Nash policy.
Without arguments: COMAL, INPO and iterative IPO on the 3x3 game of the paper, with game.png.
--compare: every algorithm on one game. --study N: every algorithm on N random games.
--samples K: where the trainer's own step ends, with K samples a prompt, pairs and labels."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `game` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "game",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("the game (default: that of the paper)").add_argument
    add("--matrix", metavar="FILE.json",
        help="list of lists, or {'matrix': …, 'names': …}; P[i][j] = P(i beats j)")  # fmt: skip
    add("--game", choices=["paper", *FAMILIES], help="a game of a family, drawn with --seed")
    add("--size", type=int, metavar="N", help="responses of a --game (default: 10)")
    add("--seed", type=int, metavar="N", help="of a --game or a --study (default: 0)")
    add("--empirical", metavar="RUN_DIR", help="the judged responses to one prompt of a run")
    add("--iteration", type=int, metavar="T", help="of the run (default: the last one judged)")
    add("--prompt", type=int, metavar="ID",
        help="of the run (default: the first with a cycle, or else the first)")  # fmt: skip
    add("--payoff", choices=PAYOFFS,
        help="what is played for: Ψ(P) in place of P (default: preference, P itself)")  # fmt: skip
    add = parser.add_argument_group("what to do with it").add_argument
    add("--algorithm", choices=sorted(SOLVERS),
        help="comal, nash-prox: the reference moves every outer step; inpo, egpo, nash-md, mnpo, "
        "rspo: it stays at the start; ipo, sppo, apo, omwu, onpo: no regularisation (default: "
        "comal)")  # fmt: skip
    add("--compare", action="store_true", default=None,
        help="run every algorithm, with outer × inner oracle calls: which converge?")  # fmt: skip
    add("--study", type=int, metavar="N",
        help="the same on N random games of 3 to 50 responses")  # fmt: skip
    add("--settings", action="store_true", default=None,
        help="with --study: COMAL with --eta auto beside COMAL at 19 fixed settings")  # fmt: skip
    add = parser.add_argument_group(
        "options (defaults: the paper's, or the algorithm's; a comparison of another game or a "
        "study: eta 1, tau 0.03, inner 100, outer 200 or 1000)"
    ).add_argument
    add("--prox", choices=sorted(OPERATORS), help="inner solver of comal (default: inpo)")
    add("--method", choices=[*METHODS, *(m for m in sampled.METHODS if m not in METHODS)],
        help="how an inner solve of comal steps (default: mirror); with --samples: mirror, onpo, "
        "mnpo, heavy_ball")  # fmt: skip
    add("--eta", type=_eta, metavar="F",
        help="KL coefficient of a step, the inverse step size (default: 1/0.3); comal takes "
        "'auto': η, τ and reference moves from what it measures")  # fmt: skip
    add("--tau", type=float, metavar="F",
        help="KL coefficient of the reference, in (0, eta] (default: 0.1)")  # fmt: skip
    add("--forward", type=float, metavar="F",
        help="rspo: weight of the KL from the reference (default: 0.1)")  # fmt: skip
    add("--momentum", type=float, metavar="F",
        help="apo: of the extrapolation, in [0, 1) (default: 0.3)")  # fmt: skip
    add("--opponents", type=int, metavar="N",
        help="mnpo: how many of the last iterates (default: 3)")  # fmt: skip
    add("--outer", type=int, metavar="N",
        help="outer steps: reference moves for comal, logged rows for inpo, iterations for the "
        "others (default: 40; egpo 1000, the others 2000)")  # fmt: skip
    add("--inner", type=int, metavar="N",
        help="prox steps per outer step of comal and inpo (default: 50)")  # fmt: skip
    add("--adaptive", action="store_true", default=None,
        help="comal: end an inner solve once its error is within c1/(9t⁴); --inner is the most "
        "steps it may take")  # fmt: skip
    add("--c1", type=float, metavar="F",
        help="comal: of that budget (default: the regularised gap at the start)")  # fmt: skip
    add("--start", metavar="A,B,C",
        help="first policy and reference (default: uniform; 0.2,0.5,0.3 for the game of the "
        "paper)")  # fmt: skip
    add = parser.add_argument_group(
        "the sampled step: the exact expectation of the trainer's iteration (enumerated over all "
        "draws up to 30,000 of them, else seeded draws); with --study N: every prox, selection "
        "and label"
    ).add_argument
    add("--samples", type=int, metavar="K", help="samples a prompt (default: 4)")
    add("--pairs", choices=STRATEGIES, help="which samples are paired (default: all)")
    add("--labels", choices=LABELS,
        help="what a pair counts as: P, a draw from it, or who is preferred (default: soft)"
        )  # fmt: skip
    add("--target", choices=TARGETS,
        help="what a pair is regressed on (default: label; rebel: win_rate)"
        )  # fmt: skip
    add("--log-z", choices=("samples", "zero"), help="sppo: its log Z (default: samples)")
    add = parser.add_argument_group("what to write").add_argument
    add("--json", metavar="OUT.json", nargs="?", const="-",
        help="nash, policy, duality_gap, kl_to_nash, oracle_calls, … (per outer step, the start "
        "first; an infinite KL is Infinity); of a comparison or study: every "
        "verdict; without a name: print it")  # fmt: skip
    add("--plot", metavar="OUT.png", help="a picture (.png, .svg or .pdf)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast game`; returns 0, or raises InputError before anything is written."""
    console = Console(quiet=args.json == "-", width=terminal.width())
    if all(getattr(args, name) is None for name in EVERYTHING):
        actions.overview(console)
        return 0
    _check_outputs(args)
    outputs = actions.Outputs(args.json, args.plot)
    if args.eta == "auto" and (args.study is not None or args.compare):
        raise InputError("--eta auto: a comparison has a row of its own for it; give a number")
    if any(getattr(args, name) is not None for name in SAMPLED):
        _sampled(args, console)
        return 0
    if args.method in sampled.METHODS and args.method not in METHODS:
        raise InputError(f"--method {args.method}: of the sampled step; give --samples too")
    if args.study is not None:
        taken = ("study", "settings", "seed", "eta", "tau", "outer", "inner", "json", "plot")
        _refuse(args, "--study", set(EVERYTHING) - set(taken))
        settings = actions.settings("study", args.eta, args.tau, args.outer, args.inner)
        if args.settings:
            _refuse(args, "--settings, which has its own", ("eta", "tau"))
        fixed = bool(args.settings)
        actions.study(console, args.study, args.seed or 0, settings, outputs, fixed=fixed)
        return 0
    _refuse(args, "anything but --study", ("settings",))
    if args.compare:
        _refuse(args, "--compare", ("algorithm", "prox", "adaptive", "c1"))
        game, label = _game(args)
        kind = "paper" if _is_paper(args) else "other"
        settings = actions.settings(kind, args.eta, args.tau, args.outer, args.inner)
        actions.compare(console, game, label, _start(args, game), settings, outputs)
        return 0
    algorithm = args.algorithm or "comal"
    options = _options(args, algorithm)
    game, label = _game(args)
    actions.solve(console, game, label, _start(args, game), algorithm, options, outputs)
    return 0


def _sampled(args: argparse.Namespace, console: Console) -> None:
    """Do what --samples and its kin ask for."""
    samples = 4 if args.samples is None else args.samples
    if args.study is not None:
        taken = ("study", "samples", "prox", "seed", "json", "plot")
        _refuse(args, "--study and --samples, which try them all", set(EVERYTHING) - set(taken))
        if args.study < 1:
            raise InputError(f"--study {args.study}: it must be a number of games, at least 1")
        _check_samples(samples, 4)
        if args.prox is not None and args.prox not in sampled.PROXES:
            raise InputError(f"--prox {args.prox}: the trainer has {', '.join(sampled.PROXES)}")
        sampled_actions.study_sampled(
            console, args.study, args.seed or 0, samples, args.prox, args.json, args.plot
        )
        return
    loop_options = ("prox", "method", "eta", "tau", "outer", "inner", "start", "json")
    _refuse(args, "--samples", set(EVERYTHING) - {*GAME_OPTIONS, *SAMPLED, *loop_options})
    if args.eta == "auto":
        raise InputError("--eta auto: the sampled step takes a number")
    _check_samples(samples, 2)
    recipe, method = _recipe(args, samples), args.method or "mirror"
    if method not in sampled.METHODS:
        raise InputError(f"--method {method}: with --samples it is {', '.join(sampled.METHODS)}")
    sampled.check_recipe(recipe, method)
    game, label = _game(args)
    if len(game.names) > 1000:
        raise InputError(f"--samples: {len(game.names)} responses; the sampled step takes 1000")
    known = {"eta": args.eta, "tau": args.tau, "outer": args.outer, "inner": args.inner}
    loops: dict[str, Any] = {"eta": 1.0, "tau": 0.1, "outer": 100, "inner": 30}
    loops |= {name: value for name, value in known.items() if value is not None}
    check_options(**loops)
    sampled_actions.solve_sampled(
        console,
        game,
        label,
        _start(args, game),
        recipe,
        method=method,
        seed=args.seed or 0,
        json_file=args.json,
        **loops,
    )


def _check_samples(samples: int, least: int) -> None:
    if samples < least:
        raise InputError(f"--samples {samples}: it must be a whole number, at least {least}")


def _recipe(args: argparse.Namespace, samples: int) -> Recipe:
    """The recipe that the arguments name; InputError for an option that the prox does not read."""
    prox, strategy = args.prox or "inpo", args.pairs or "all"
    if prox not in sampled.PROXES:
        raise InputError(f"--prox {prox}: the trainer has {', '.join(sampled.PROXES)}")
    if prox in sampled.SINGLE:
        _refuse(
            args, f"--prox {prox}, which trains on every response", ("pairs", "labels", "target")
        )
    if prox != "sppo":
        _refuse(args, f"--prox {prox}", ("log_z",))
    own = "win_rate" if prox in ("rebel", *sampled.SINGLE) else "label"
    target, labels = args.target or own, args.labels or "soft"
    return Recipe(prox, strategy, labels, target, samples, args.log_z or "samples")


def _game(args: argparse.Namespace) -> tuple[Game, str]:
    """The game that the arguments name, and what to call it."""
    game, label = _preferences(args)
    if args.payoff is None:
        return game, label
    return with_payoff(game, args.payoff), f"{label}, payoff {args.payoff}"


def _preferences(args: argparse.Namespace) -> tuple[Game, str]:
    sources = [name for name in ("matrix", "game", "empirical") if getattr(args, name) is not None]
    if len(sources) > 1:
        raise InputError(f"--{sources[0]} and --{sources[1]}: two games; give one of them")
    if args.empirical is None:
        _refuse(args, "a game that is not --empirical", ("iteration", "prompt"))
    else:
        _refuse(args, "--empirical", ("size", "seed"))
        game, label = load_empirical(args.empirical, args.iteration, args.prompt)
        return game, f"{label}, {len(game.names)} responses"
    if args.matrix is not None:
        _refuse(args, "--matrix", ("size", "seed"))
        game = load_game(args.matrix)
        return game, f"{os.path.basename(args.matrix)}, {len(game.names)} responses"
    game = make_game(args.game or "paper", args.size, args.seed)
    if _is_paper(args):
        return game, actions.PAPER
    return game, f"a {args.game} game, {len(game.names)} responses, seed {args.seed or 0}"


def _eta(word: str) -> float | str:
    return word if word == "auto" else float(word)


def _is_paper(args: argparse.Namespace) -> bool:
    return args.matrix is None and args.empirical is None and args.game in (None, "paper")


def _refuse(args: argparse.Namespace, mode: str, names: Any) -> None:
    for name in names:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise InputError(f"--{option} has no effect with {mode}; leave it out")


def _options(args: argparse.Namespace, algorithm: str) -> dict[str, Any]:
    options = actions.defaults(algorithm)
    for name in OPTIONS:
        value = getattr(args, name)
        if value is None:
            continue
        if name not in options:
            raise InputError(
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
        raise InputError(f"--plot {args.plot}: the same file as --json; give another name")


def _start(args: argparse.Namespace, game: Game) -> Array:
    n = len(game.names)
    if args.start is None:
        return check_start(PAPER_START if _is_paper(args) else None, n)
    values = []
    for i, word in enumerate(args.start.split(",")):
        try:
            values.append(float(word))
        except ValueError:
            raise InputError(
                f"--start: entry {i} is {word!r}, not a number; give {n} numbers with commas"
            ) from None
    return check_start(values, n, "--start")
