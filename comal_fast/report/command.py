"""The verb `comal-fast report`: a page that shows what a run did."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError

PORT = 8765


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `report` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        description="Write RUN_DIR/report.html, one self-contained page, and RUN_DIR/report/*.png. "
        "It works at any moment of a run, and says what is missing yet.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of the run")
    parser.add_argument("--live", action="store_true",
        help="serve the page to this machine alone, anew as the run goes on")  # fmt: skip
    parser.add_argument("--port", type=int, metavar="N", help="of --live (default: 8765)")
    parser.add_argument("--json", action="store_true", help="print the facts above it as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast report`; returns 0, or raises InputError with one line."""
    from comal_fast.report.facts import verdict  # matplotlib and pyarrow are slow to load
    from comal_fast.report.html import write_run
    from comal_fast.report.load import load_run
    from comal_fast.report.tables import headline

    if args.live:
        if args.json:
            raise InputError("--json: no effect with --live")
        return _live(Path(args.run_dir), PORT if args.port is None else args.port)
    if args.port is not None:
        raise InputError("--port: no effect without --live")
    found = load_run(Path(args.run_dir))
    page, said = write_run(found), verdict(found)
    if args.json:
        facts = dict(headline(found, said))
        content = {"verdict": said.text, "outcome": said.outcome, "facts": facts}
        print(json.dumps({**content, "page": str(page), "problems": found.problems}, indent=2))
        return 0
    print(page)
    print(said.text)
    for problem in found.problems:
        print(problem)
    return 0


def _live(path: Path, port: int) -> int:
    from comal_fast.report.live import HOST, serve

    with serve(path, port) as server:
        print(f"http://{HOST}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
