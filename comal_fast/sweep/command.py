"""The verb `comal-fast sweep`: a grid of runs, one table and one picture."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comal_fast.system.terminal import only_json

if TYPE_CHECKING:
    from comal_fast.config import Config
    from comal_fast.config.oracle import OracleConfig

DESCRIPTION = """\
Run every combination of the given values, each in its own run directory under output_dir/cells, and
compare the results. Given again it resumes. Cells share what does not depend on what they differ
in. An option's group may be left out where its name is unique: --grid tau_eta_ratio=0.1,0.33,1."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `sweep` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sweep",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file")
    add("--grid", action="append", nargs="+", required=True, metavar="key=a,b,…",
        help="options and their values, commas between; a single value holds in all "
        "cells")  # fmt: skip
    add("--markdown", metavar="FILE.md",
        help="write the page there too, its picture into img/ beside it")  # fmt: skip
    add("--power", action="store_true",
        help="also: prompts and seeds that would show a difference of 1 to 5 points")  # fmt: skip
    add("--judge", action="extend", nargs="+", default=[], metavar="oracle.key=value",
        help="also: what another oracle says of the same responses, one that no cell was "
        "trained on")  # fmt: skip
    add("--json", action="store_true", help="print sweep.json, and nothing else")
    add("overrides", nargs="*", metavar="key=value", help="options set in all cells")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast sweep`; returns 0, or 1 where a cell broke off."""
    from comal_fast.config.load import know_plugins
    from comal_fast.errors import InputError
    from comal_fast.store.files import check_target
    from comal_fast.sweep.grid import expand, full_override, parse_axes

    know_plugins(args.config)
    axes, fixed = parse_axes([word for words in args.grid for word in words])
    overrides = [*map(full_override, args.overrides), *fixed]
    if args.power and all(axis.key == "seed" for axis in axes):
        raise InputError("--power: seeds alone show no difference; give the grid two settings")
    if args.markdown is not None:
        check_target(args.markdown, "--markdown")
    folder, cells = expand(args.config, axes, overrides)
    judge = second_judge([cell.config for cell in cells], args.judge)

    from comal_fast.store.files import locked
    from comal_fast.sweep.runs import run_cells

    taken = f"{folder}: another comal-fast sweep is at work in it"
    with only_json(args.json):
        with locked(folder, "sweep", taken):
            failed = run_cells(folder, cells)
        _write(args, folder, axes, cells, failed, judge)
    if args.json:
        print((folder / "sweep.json").read_text(), end="")
    return 1 if failed else 0


def _write(
    args: argparse.Namespace,
    folder: Path,
    axes: list[Any],
    cells: list[Any],
    failed: dict[str, str],
    judge: Any,
) -> None:
    from comal_fast.figures.style import LIGHT, to_png
    from comal_fast.store.files import write_bytes, write_json, write_text
    from comal_fast.sweep.collect import collect, to_json
    from comal_fast.sweep.conclusions import conclusions
    from comal_fast.sweep.markdown import render
    from comal_fast.sweep.plot import draw
    from comal_fast.sweep.power import explanation, power_table, variances
    from comal_fast.sweep.table import table
    from comal_fast.system.terminal import console

    sweep = collect(folder, axes, cells, failed, judge)
    picture = to_png(draw(sweep, LIGHT))
    pages = [folder / "sweep.md"]
    if args.markdown is not None:
        pages.append(Path(args.markdown))
    write_json(folder / "sweep.json", to_json(sweep))
    for page in pages:
        image = page.parent / "img" / f"{page.stem}.png"
        write_bytes(image, picture)
        write_text(page, render(sweep, command_line(args), f"img/{image.name}"))
    console.print(table(sweep))
    for sentence in conclusions(sweep):
        console.print(f"• {sentence}", markup=False)
    if args.power:
        found = variances(sweep.results)
        console.print(power_table(found))
        console.print(explanation(sweep, found), highlight=False)
    for page in pages:
        console.print(f"wrote {page}", soft_wrap=True)


def second_judge(configs: list[Config], options: list[str]) -> OracleConfig | None:
    """The oracle that `--judge` names. InputError for one that is none, or asks nobody."""
    from comal_fast.config.load import override
    from comal_fast.errors import InputError
    from comal_fast.oracles import make_oracle

    if not options:
        return None
    for text in options:
        if not text.startswith("oracle."):
            raise InputError(f"--judge {text}: expected oracle.key=value")
    try:
        judge = override(configs[0], options).oracle
        make_oracle(judge)
    except InputError as error:
        raise InputError(f"--judge: {error}") from None
    if any(judge == config.oracle for config in configs):
        raise InputError("--judge: this is the oracle of the cells; name another")
    return judge


def command_line(args: argparse.Namespace) -> str:
    """The command that was given."""
    words = ["comal-fast", "sweep", args.config, *args.overrides]
    words += ["--grid", *(w for ws in args.grid for w in ws)]
    if args.markdown is not None:
        words += ["--markdown", args.markdown]
    if args.judge:
        words += ["--judge", *args.judge]
    return shlex.join(words)
