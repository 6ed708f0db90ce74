"""The verb `comal-fast watch`."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError


def register(verbs: Any) -> None:
    """Add `watch`."""
    verb = verbs.add_parser(
        "watch",
        description="Show a run as it goes, also one that another process makes: phase, rate, time "
        "left of the phase and of the run, loss, margins, KL, win rates with intervals, memory, "
        "diagnostics. It ends when the run does; piped, it shows the present once.",
    )
    verb.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="directory of the run")
    verb.add_argument("--interval", type=float, metavar="S", default=1.0,
        help="seconds between two looks (default: %(default)s)")  # fmt: skip
    verb.add_argument("--once", action="store_true", help="show the present once")
    verb.add_argument("--json", action="store_true", help="print the present once, as JSON")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it; returns 0, or raises InputError where there is no run."""
    if not 0.1 <= args.interval <= 3600:
        raise InputError(f"--interval {args.interval:g}: expected 0.1 to 3600 seconds")
    from rich.live import Live

    from comal_fast.system.terminal import console
    from comal_fast.watch.screen import screen
    from comal_fast.watch.snapshot import snapshot

    shot = snapshot(args.run_dir)
    if args.json:
        print(json.dumps(shot.to_json(), indent=2))
        return 0
    if args.once or not console.is_terminal or not shot.running:
        console.print(screen(shot, console.width))
        return 0
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(screen(shot, console.width), refresh=True)
                if not shot.running:
                    break
                time.sleep(args.interval)
                with suppress(InputError):  # a file that is being made anew as it is read
                    shot = snapshot(args.run_dir)
                if not (args.run_dir / "config.yaml").exists():
                    raise InputError(f"{args.run_dir}: the run is gone")
        except KeyboardInterrupt:  # it is the watching that ends
            pass
    return 0
