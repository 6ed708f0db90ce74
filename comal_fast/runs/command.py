"""The verbs `comal-fast runs` and `comal-fast clean`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add both."""
    runs = subparsers.add_parser(
        "runs",
    )
    runs.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path("runs"),
        help="default: %(default)s")  # fmt: skip
    runs.add_argument("--json", action="store_true", help="print them as JSON")
    runs.set_defaults(run=_runs)
    clean = subparsers.add_parser(
        "clean",
        description="Say what the weights of a finished run take that are not to be kept, and with "
        "--yes delete them. Samples, judgements, evaluations and metrics stay: report and compare "
        "go on working, the run itself does not go on.",
    )
    clean.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    clean.add_argument("--keep", default="best,last", metavar="best,last,T",
        help="iterates whose weights stay (default: %(default)s)")  # fmt: skip
    clean.add_argument("--yes", action="store_true", help="delete them")
    clean.set_defaults(run=_clean)


def _runs(args: argparse.Namespace) -> int:
    from comal_fast.runs.listing import entries, size_text, table
    from comal_fast.system.terminal import console

    found = entries(args.folder)
    if args.json:
        print(json.dumps([entry.to_json() for entry in found], indent=2))
        return 0
    console.print(table(found))
    total = size_text(sum(entry.bytes for entry in found))
    console.print(f"{len(found)} runs, {total}", style="dim")
    return 0


def _clean(args: argparse.Namespace) -> int:
    from comal_fast.runs.clean import plan
    from comal_fast.runs.listing import size_text
    from comal_fast.system.terminal import console

    found = plan(args.run_dir, [word.strip() for word in args.keep.split(",")])
    kept = ", ".join(f"π_{t}" for t in found.kept)
    freed = ", ".join(f"π_{t}" for t in found.freed) or "no iterate"
    console.print(
        f"{args.run_dir}: {size_text(found.bytes)} in {len(found.folders)} folders, the weights of "
        f"{freed}; kept: {kept}",
        soft_wrap=True,
    )
    if not found.folders:
        return 0
    if not args.yes:
        console.print("nothing was deleted; --yes does it", soft_wrap=True)
        return 0
    found.execute()
    console.print(f"freed {size_text(found.bytes)}", soft_wrap=True)
    return 0
