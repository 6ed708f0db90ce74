"""What a bench is: its verb, what it runs, and how its records look."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import options, record
from bench.record import Record


@dataclass(frozen=True)
class Call:
    """One call of a bench in `bench all`, which adds --device, --json and --plot.

    Of all calls on a kind of device those of the lowest order come first.
    """

    device: str  # cpu or cuda
    order: int
    arguments: str = ""


@dataclass(frozen=True)
class Bench:
    """`python -m bench VERB`. Every file of benches/ holds one, called BENCH; no list names them.

    `run` makes its record by `record.new`, under one of the names in `records`. A long one gives
    `args.keep` what it has so far, whenever there is more: that is written at once, so that a run
    which is cut off leaves its rows.
    """

    verb: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]  # --json and --plot come by themselves
    run: Callable[[argparse.Namespace], Record]
    records: tuple[str, ...]  # the names that its records may have
    show: Callable[[Record], None]  # on the terminal
    markdown: Callable[[Record, int], str]  # in a document; the int is a number of tokens, or 0
    draw: Callable[[Record], bytes] | None = None  # a PNG
    failed: Callable[[Record], bool] = lambda found: False  # then the exit status is 1
    in_all: tuple[Call, ...] = ()

    def register(self, verbs: Any) -> None:
        """Add the verb to argparse's subparsers."""
        parser = verbs.add_parser(self.verb, help=self.help)
        self.add_options(parser)
        options.add(parser, "json", *(["plot"] if self.draw else []))
        parser.set_defaults(run=self.main)

    def main(self, args: argparse.Namespace) -> int:
        """Run, show, write where --json and --plot ask for it. Exit status 1 if it failed."""
        args.keep = lambda found: record.write(found | {"partial": True}, args.json, said=False)
        if not args.json:
            args.keep = lambda found: None
        found = self.run(args)
        self.show(found)
        if args.json:
            record.write(found, args.json)
        if self.draw and args.plot:
            record.write_picture(found, self.draw(found), args.plot)
        return int(self.failed(found))
