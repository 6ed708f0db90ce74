"""The verb `comal-fast report`: a page that shows what a run did."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `report` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        help="write RUN_DIR/report.html and RUN_DIR/report/*.png",
        description="Write RUN_DIR/report.html, one self-contained page, and RUN_DIR/report/*.png. "
        "It works at any moment of a run, and says what is missing yet.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of the run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast report`; returns 0, or raises InputError with one line."""
    from comal_fast.report.facts import verdict  # matplotlib and pyarrow are slow to load
    from comal_fast.report.html import write_run
    from comal_fast.report.load import load_run

    found = load_run(Path(args.run_dir))
    page = write_run(found)
    print(page)
    print(verdict(found).text)
    for problem in found.problems:
        print(problem)
    return 0
