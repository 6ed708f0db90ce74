"""Every bench in turn, each in a process of its own, under one limit of time."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any

from bench import options, record

WRITTEN = ["--json", "--plot"]  # to the standing places under bench/results/
ORDER: dict[str, list[list[str]]] = {  # by device; what matters most comes first
    "cpu": [
        ["head", "--tokens", "1024", *WRITTEN],
        ["step", *WRITTEN],
        ["scaling", "--tokens", "256", "1024", "2048", *WRITTEN],
        ["profile", "step", *WRITTEN],
        ["model", "--json"],
    ],
    "cuda": [
        ["head", "--tokens", "8192", *WRITTEN],
        ["step", *WRITTEN],
        ["head", "--tokens", "8192", "--forward-only", *WRITTEN],
        ["scaling", *WRITTEN],
        ["profile", "step", "--model", "llama3.2-1b", *WRITTEN],
        ["profile", "head", *WRITTEN],
        ["memory", *WRITTEN],
        ["model", "--json"],
    ],
}


def register(benches: Any) -> None:
    """Add `all`."""
    parser = benches.add_parser("all", help="everything, under one limit of time")
    options.add(parser, "device")
    parser.add_argument(
        "--minutes", type=options.positive, default=9, help="limit in all; default 9"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run them, name what the time does not reach. Status 1 if any failed or was not reached."""
    end, outcome = time.monotonic() + 60 * args.minutes, []
    for arguments in ORDER[args.device.type]:
        name = " ".join(a for a in arguments if a not in WRITTEN)
        left, start = end - time.monotonic(), time.monotonic()
        print(f"\n── bench {name}", flush=True)
        command = [sys.executable, "-m", "bench", *arguments, "--device", str(args.device)]
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
