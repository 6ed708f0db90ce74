"""The verb `comal-fast lm-game`: build the model that plays a game, and measure runs of it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError
from comal_fast.game.preference import PAPER_START, check_start
from comal_fast.game.prompted import SUFFIX, PromptGame
from comal_fast.store.files import check_target, write_all
from comal_fast.system.terminal import console, only_json

_DESCRIPTION = """\
A language model whose responses are the strings of known games (oracle.game).
make: write a small one to model.name_or_path. measure: its exact policies after `comal-fast run`.
games: write a file of many games. study: many runs of many configurations, with intervals."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `lm-game` parser with its two verbs."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "lm-game",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    make = verbs.add_parser("make", help="write the model that CONFIG names")
    make.add_argument("config", metavar="CONFIG", help="YAML file")
    make.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    make.add_argument("--start", metavar="A,B,C",
        help="probability of each response at first (default: "
        f"{','.join(map(str, PAPER_START))}; a file of many games holds its own)")  # fmt: skip
    make.add_argument("--hidden", type=int, default=64, metavar="H",
        help="width of the model, a multiple of 64 (default: %(default)s)")  # fmt: skip
    make.add_argument("--layers", type=int, default=2, metavar="L",
        help="its layers (default: %(default)s)")  # fmt: skip
    make.set_defaults(run=_make)
    measure = verbs.add_parser(
        "measure", help="exact policies, distances from Nash and gaps; writes RUN_DIR/lm_game.json"
    )
    measure.add_argument("configs", metavar="CONFIG", nargs="+", help="YAML files, a run each")
    measure.add_argument(
        "--plot", metavar="OUT.png", help="picture: paths and distances of all the runs"
    )
    measure.add_argument("--json", action="store_true", help="print every figure instead")
    measure.set_defaults(run=_measure, overrides=[])
    games = verbs.add_parser("games", help="write a file of many games, a prompt each")
    games.add_argument("output", metavar="OUT.jsonl", help="for oracle.game and data.prompts")
    games.add_argument("--prompts", type=int, default=200, metavar="N",
        help="games, a training prompt each (default: %(default)s)")  # fmt: skip
    games.add_argument("--held-out", type=int, default=50, metavar="N",
        help="of them, those with a held-out paraphrase (default: %(default)s)")  # fmt: skip
    games.add_argument("--empirical", action="append", default=[], metavar="RUN_DIR",
        help="also games of the responses that this run's oracle judged; may be given "
        "again")  # fmt: skip
    games.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    games.set_defaults(run=_games)
    study = verbs.add_parser(
        "study", help="run and measure configurations with several seeds; tables with intervals"
    )
    study.add_argument("configs", metavar="CONFIG", nargs="+",
        help="YAML files, their runs in output_dir/seed-N; or a record to read")  # fmt: skip
    study.add_argument("--seeds", type=int, default=5, metavar="N",
        help="runs of each, with seeds 0 to N − 1 (default: %(default)s)")  # fmt: skip
    study.add_argument("--against", metavar="NAME",
        help="the run that the others are compared with (default: the last)")  # fmt: skip
    study.add_argument("--record", metavar="OUT.json.gz", help="what was measured")
    study.add_argument("--markdown", metavar="OUT.md", help="the tables")
    study.add_argument("--plot", metavar="OUT.png", help="the picture")
    study.add_argument("--json", action="store_true", help="print the record instead of tables")
    study.set_defaults(run=_study, overrides=[])


def _make(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    config = load_config(args.config, args.overrides)
    # torch and transformers are slow to load
    from comal_fast.lm_game.measure import known_games
    from comal_fast.lm_game.model import make

    for option, value, step in (("--hidden", args.hidden, 64), ("--layers", args.layers, 1)):
        if value < step or value % step:
            raise InputError(f"{option} {value}: expected a multiple of {step}")
    oracle, game_of = known_games(config)
    many = oracle.game.endswith(SUFFIX)
    if many and args.start is not None:
        raise InputError(f"--start: no effect, oracle.game {oracle.game} says it of each prompt")
    try:
        values = [float(word) for word in args.start.split(",")] if args.start else PAPER_START
    except ValueError:
        raise InputError(f"--start {args.start}: expected numbers with commas between") from None

    def started(prompt: str) -> PromptGame:
        found = game_of(prompt)
        if many:
            return found
        return replace(found, start=check_start(values, len(found.game.names), "--start"))

    path = make(config, started, not many, args.hidden, args.layers)
    console.print(f"model: {path}", soft_wrap=True)
    return 0


def _games(args: argparse.Namespace) -> int:
    from comal_fast.lm_game.games import many_games, to_jsonl

    check_target(args.output, "OUT.jsonl")
    if not args.output.endswith(SUFFIX):
        raise InputError(f"{args.output}: the name must end in {SUFFIX}")
    rows = many_games(args.prompts, args.held_out, args.seed, args.empirical)
    write_all({args.output: to_jsonl(rows)})
    console.print(f"wrote {args.output}: {args.prompts} games", soft_wrap=True)
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

    with only_json(args.json):
        runs = [measure(config) for config in configs]
        console.print(iterate_table(runs[0]) if len(runs) == 1 else run_table(runs))
    if args.plot is not None:
        from comal_fast.lm_game.plot import draw

        write_all({args.plot: draw(runs)})
        with only_json(args.json):
            console.print(f"wrote {args.plot}", style="dim", soft_wrap=True)
    if args.json:
        print(json.dumps({run.name: run.to_json() for run in runs}, indent=2))
    return 0


def _study(args: argparse.Namespace) -> int:
    if args.seeds < 2:
        raise InputError(f"--seeds {args.seeds}: an interval over seeds takes 2 or more")
    for option, target in (
        ("--record", args.record),
        ("--markdown", args.markdown),
        ("--plot", args.plot),
    ):
        if target is not None:
            check_target(target, option)
    from comal_fast.lm_game.study import play, read, to_bytes
    from comal_fast.lm_game.study_plot import draw
    from comal_fast.lm_game.study_tables import markdown

    files = [name for name in args.configs if "=" not in name or Path(name).is_file()]
    overrides = [*args.overrides, *(name for name in args.configs if name not in files)]
    if files and files[0].endswith((".json", ".json.gz")):
        if len(args.configs) > 1:
            raise InputError(f"{args.configs[1]}: a record is read alone, without configurations")
        study = read(files[0])
    else:
        with only_json(args.json):
            study = play(files, range(args.seeds), overrides)
    text = markdown(study, args.against or study.names[-1])
    written: dict[str, bytes] = {}
    if args.record is not None:
        written[args.record] = to_bytes(study, args.record)
    if args.markdown is not None:
        written[args.markdown] = text.encode()
    if args.plot is not None:
        written[args.plot] = draw(study)
    with only_json(args.json):
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        if written:
            write_all(written)
            console.print(f"wrote {', '.join(written)}", style="dim", soft_wrap=True)
    if args.json:
        print(json.dumps(study.content))
    return 0
