"""The verb `comal-fast oracle check`: a configuration's oracle against pairs that people judged."""

from __future__ import annotations

import argparse
import json
from typing import Any

from comal_fast.system.terminal import only_json

DESCRIPTION = """\
Ask the oracle of a configuration about pairs whose better response is known: accuracy with its
interval, calibration, position bias, length bias, strict cycles, speed. Writes a page."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `oracle` parser with its verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser("oracle")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="accuracy, calibration and biases on human pairs, as a page",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("config", metavar="CONFIG", help="YAML file")
    check.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    check.add_argument(
        "--pairs", required=True, metavar="FILE", help="chosen and rejected, as in data.pairs"
    )
    check.add_argument("--limit", type=int, metavar="N", help="the first N pairs (default: all)")
    check.add_argument(
        "--page", default="oracle_check.html", metavar="OUT.html", help="default: %(default)s"
    )
    check.add_argument("--json", metavar="OUT.json", help="write every figure; -: print them")
    check.set_defaults(run=run)


def _device(options: Any) -> str:
    return str(getattr(options, "device", "cpu"))


def run(args: argparse.Namespace) -> int:
    """Execute it; returns 0, or raises InputError before anything is written."""
    with only_json(args.json == "-"):
        _check(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    from comal_fast.config import load_config
    from comal_fast.errors import InputError
    from comal_fast.store.files import check_target, write_all

    config = load_config(args.config, args.overrides)
    check_target(args.page, "--page")
    if args.json is not None:
        check_target(args.json, "--json")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: {args.limit} is less than 1")

    from rich.table import Table

    from comal_fast.data.pairs import left_out_line, load_pairs
    from comal_fast.model.load import pick_device
    from comal_fast.oracle_check.measure import judge, known_pairs, measures
    from comal_fast.oracle_check.page import render, rows
    from comal_fast.oracles import make_oracle
    from comal_fast.store.directory import RunDirectory
    from comal_fast.system.machine import device_name, versions
    from comal_fast.system.terminal import console, progress

    loaded = load_pairs(config.data, args.pairs, "--pairs")
    pairs = known_pairs(loaded.pairs)[: args.limit]
    if not pairs:
        raise InputError(f"--pairs {args.pairs}: no pair in it says which response is better")
    if loaded.left_out:
        total = len(loaded.pairs) + sum(loaded.left_out.values())
        console.print(f"  {left_out_line(loaded.left_out, total)}")
    oracle = make_oracle(config.oracle, RunDirectory(config.output_dir).oracle_cache)
    with progress(f"oracle {config.oracle.name}", len(pairs), "pairs") as advance:
        judged = judge(pairs, oracle, advance)
    devices = {_device(options) for options in getattr(config.oracle, "members", [config.oracle])}
    result = {
        "oracle": config.oracle.name,
        "source": args.pairs,
        **measures(judged),
        "device": " and ".join(
            sorted({device_name(pick_device(name, "oracle.device")) for name in devices})
        ),
        "versions": versions(),
    }
    table = Table(title=f"{config.oracle.name} on {len(pairs)} pairs", show_header=False)
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    contents = {args.page: render(result).encode("utf-8", "replace")}
    if args.json is not None:
        contents[args.json] = (json.dumps(result, indent=2) + "\n").encode()
    write_all(contents)
    for name in contents:
        console.print(f"wrote {name}", style="dim", soft_wrap=True)
