"""The verb `comal-fast lm-game`: build the model that plays a game, and measure runs of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError
from comal_fast.game.preference import PAPER_START, check_start
from comal_fast.store.files import check_target, write_all
from comal_fast.system.terminal import console

_DESCRIPTION = """\
A language model whose responses are the strings of a known game (oracle.game).
make: write a tiny one to model.name_or_path. measure: its exact policies after `comal-fast run`."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `lm-game` parser with its two verbs."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "lm-game",
        help="a language model with a known Nash equilibrium: build it, measure runs of it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    make = verbs.add_parser("make", help="write the model that CONFIG names")
    make.add_argument("config", metavar="CONFIG", help="YAML file")
    make.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    make.add_argument("--start", metavar="A,B,C",
        default=",".join(map(str, PAPER_START)),
        help="probability of each response at first (default: %(default)s)")  # fmt: skip
    make.set_defaults(run=_make)
    measure = verbs.add_parser(
        "measure", help="exact policies, distances from Nash and gaps; writes RUN_DIR/lm_game.json"
    )
    measure.add_argument("configs", metavar="CONFIG", nargs="+", help="YAML files, a run each")
    measure.add_argument(
        "--plot", metavar="OUT.png", help="picture: paths and distances of all the runs"
    )
    measure.set_defaults(run=_measure, overrides=[])


def _make(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    config = load_config(args.config, args.overrides)
    from comal_fast.lm_game.measure import known_game  # torch and transformers are slow to load

    _, game = known_game(config)
    try:
        values = [float(word) for word in args.start.split(",")]
    except ValueError:
        raise InputError(f"--start {args.start}: expected numbers with commas between") from None
    start = check_start(values, len(game.names), "--start")
    from comal_fast.lm_game.model import make

    console.print(f"model: {make(config, game, start)}", soft_wrap=True)
    return 0


def _measure(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    files = [name for name in args.configs if "=" not in name or Path(name).is_file()]
    overrides = [*args.overrides, *(name for name in args.configs if name not in files)]
    configs = [load_config(name, overrides) for name in files]
    if args.plot is not None:
        check_target(args.plot, "--plot")
    from comal_fast.lm_game.measure import measure
    from comal_fast.lm_game.tables import iterate_table, run_table

    runs = [measure(config) for config in configs]
    console.print(iterate_table(runs[0]) if len(runs) == 1 else run_table(runs))
    if args.plot is not None:
        from comal_fast.lm_game.plot import draw

        write_all({args.plot: draw(runs)})
        console.print(f"wrote {args.plot}", style="dim", soft_wrap=True)
    return 0
