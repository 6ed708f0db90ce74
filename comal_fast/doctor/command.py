"""The verb `comal-fast doctor`."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """\
Check this machine, and with CONFIG what that run needs: versions, GPU and driver, which kernels,
attention and 8-bit paths will run, data, oracle, memory, disk, the hub and its token (not shown),
vLLM's environment. Every problem comes with its cure. Exit status 2 where something keeps a run
from working."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `doctor` parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; returns 0, or 2 where something is bad."""
    from rich.markup import escape

    from comal_fast.doctor.configuration import configuration
    from comal_fast.doctor.machine import machine
    from comal_fast.system.terminal import console, only_json

    with only_json(args.json):  # what reads the configuration has its say too
        found = machine()
        if args.config is not None:
            found += configuration(args.config, args.overrides)
    bad = [f for f in found if f.status == "bad"]
    if args.json:
        print(json.dumps([f.to_json() for f in found], indent=2))
        return 2 if bad else 0
    marks = {"good": "[green]✓[/]", "note": "[yellow]·[/]", "bad": "[red]✗[/]"}
    for finding in found:
        console.print(
            f"{marks[finding.status]} {finding.about}: {escape(finding.text)}", soft_wrap=True
        )
        if finding.cure:
            console.print(f"    → {escape(finding.cure)}", soft_wrap=True)
    if bad:
        said = "1 problem" if len(bad) == 1 else f"{len(bad)} problems"
        console.print(f"{said}: {', '.join(f.about for f in bad)}", style="bold red")
        return 2
    console.print("nothing keeps a run from working", style="bold green")
    return 0
