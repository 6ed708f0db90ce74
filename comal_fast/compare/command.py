"""The verb `comal-fast compare`: iterates and runs against each other on held-out prompts."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from comal_fast.system.terminal import only_json

DESCRIPTION = """\
Judge the held-out samples of run directories against each other, all pairs on the same prompts.
One run: all its iterates. Several: the initial policy and each run's result. oracle.NAME=value asks
another oracle than the runs' own, a reward model that they were not trained on, say. A file (.json,
.jsonl) holds another system's answers, as AlpacaEval, Arena-Hard or MT-Bench read them: first turns
are compared, on questions that all have, lengths in words."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `compare` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dirs", nargs="+", metavar="RUN_DIR|FILE")
    add("--questions", metavar="FILE",
        help="of Arena-Hard 0.1 or MT-Bench, whose answers do not repeat them")  # fmt: skip
    add("--all", action="store_true", help="every iterate of every run (default with one run)")
    add("--json", metavar="OUT.json", help="write everything, intervals too; -: print it")
    add("--plot", metavar="OUT.png", help="write the matrix as a picture")
    parser.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast compare`; returns 0, or raises InputError before anything is written."""
    with only_json(args.json == "-"):
        _compare(args)
    return 0


def _compare(args: argparse.Namespace) -> None:
    from comal_fast.compare.entrants import load_entrants, match, samples_of
    from comal_fast.compare.files import held_of, is_answers, judge_of
    from comal_fast.compare.tables import matrix_table, pairs_table, standings_table
    from comal_fast.compare.tournament import play, to_json
    from comal_fast.errors import InputError
    from comal_fast.oracles import make_oracle
    from comal_fast.statistics import LEAST_PROMPTS
    from comal_fast.store.directory import RunDirectory
    from comal_fast.store.files import check_target, write_all
    from comal_fast.system.terminal import console, progress

    for option in ("json", "plot"):
        if getattr(args, option) is not None:
            check_target(getattr(args, option), f"--{option}")
    given = [*args.run_dirs, *args.overrides]
    overrides = [text for text in given if re.match(r"oracle(\.[\w.]+)?=", text)]
    files = [text for text in given if is_answers(text)]
    runs = [Path(text) for text in given if text not in [*overrides, *files]]
    if not runs and not files:
        raise InputError("compare: give a run directory")
    if args.questions and not files:
        raise InputError("--questions: no effect without a file of answers")
    if not runs and args.all:
        raise InputError("--all: no effect without a run directory")
    samples: dict[str, Any] = {}
    config, kept = None, None
    if runs:
        everything = args.all or (len(runs) == 1 and not files)
        samples, config = samples_of(runs, everything, overrides)
        kept = RunDirectory(runs[0]).oracle_cache
    config = config or judge_of(overrides)
    if files:
        entrants, prompts, most = match(held_of(files, args.questions, samples))
    else:
        entrants, prompts, most = load_entrants(samples)
    oracle = make_oracle(config.oracle, kept)
    size = len(entrants)
    total = size * (size - 1) // 2 * len(prompts)
    with progress(f"{size} entrants", total, "comparisons") as advance:
        game = play(entrants, prompts, oracle, advance)
    result = to_json(game, config.evaluation.bootstrap, config.seed)
    for table in (matrix_table(result), standings_table(result), pairs_table(result)):
        console.print(table)
    if len(prompts) < LEAST_PROMPTS:
        console.print(f"too few prompts for a verdict: {len(prompts)}, it takes {LEAST_PROMPTS}")
    if len(prompts) < most:
        console.print(f"on the {len(prompts)} of {most} prompts that all of them held out")
    contents: dict[str, bytes] = {}
    if args.json is not None:
        contents[args.json] = (json.dumps(result, indent=2) + "\n").encode()
    if args.plot is not None:
        contents[args.plot] = picture(result)
    write_all(contents)
    for name in contents:
        console.print(f"wrote {name}", style="dim", soft_wrap=True)


def picture(result: dict[str, Any]) -> bytes:
    """The PNG of the matrix."""
    import numpy as np

    from comal_fast.figures.heatmap import heat_map  # matplotlib is slow to load
    from comal_fast.figures.style import LIGHT, to_png
    from comal_fast.statistics import LEAST_PROMPTS

    names = result["names"]
    excludes = np.zeros((len(names), len(names)), dtype=bool)
    for pair in result["pairs"]:
        low, high = pair["ci95"]
        place = names.index(pair["row"]), names.index(pair["column"])
        enough = result["n_prompts"] >= LEAST_PROMPTS
        excludes[place] = enough and (low > 0.5 or high < 0.5)
    return to_png(heat_map(LIGHT, names, np.array(result["matrix"]), excludes, "", "against"))
