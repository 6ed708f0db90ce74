"""Every bench in turn, each in a process of its own, under one limit of time."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any

from bench import options, record
from bench.bench import Bench, Call
from bench.benches import discover


def register(verbs: Any) -> None:
    """Add `all`."""
    parser = verbs.add_parser("all", help="everything, under one limit of time")
    options.add(parser, "device")
    parser.add_argument(
        "--minutes", type=options.positive, default=9, help="limit in all; default 9"
    )
    parser.set_defaults(run=run)


def calls(device: str) -> list[tuple[Bench, Call]]:
    """Every call on a kind of device, what matters most first."""
    found = [(bench, call) for bench in discover() for call in bench.in_all]
    return sorted((pair for pair in found if pair[1].device == device), key=lambda p: p[1].order)


def run(args: argparse.Namespace) -> int:
    """Run them, name what the time does not reach. Status 1 if any failed or was not reached."""
    end, outcome = time.monotonic() + 60 * args.minutes, []
    for bench, call in calls(args.device.type):
        name = f"{bench.verb} {call.arguments}".rstrip()
        left, start = end - time.monotonic(), time.monotonic()
        print(f"\n── bench {name}", flush=True)
        written = ["--json", "--plot"] if bench.draw else ["--json"]  # to the standing places
        command = [sys.executable, "-m", "bench", *name.split(), *written]
        command += ["--device", str(args.device)]
        try:
            status = subprocess.run(command, cwd=record.ROOT, timeout=max(1.0, left)).returncode
            said = "done" if status == 0 else f"status {status}"
        except subprocess.TimeoutExpired:
            said = "out of time"
        outcome.append((name, said, time.monotonic() - start))
    print()
    for name, said, seconds in outcome:
        print(f"{said:<12} {seconds:6.0f} s  bench {name}")
    return int(any(said != "done" for _, said, _ in outcome))
