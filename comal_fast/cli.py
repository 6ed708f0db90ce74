"""The command line: finds the verb, runs it, and says what went wrong in one line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from comal_fast import __version__
from comal_fast.errors import InputError
from comal_fast.system.ranks import world
from comal_fast.verbs import OVERVIEW, VERBS

_BROKEN_PIPE = 128 + 13  # SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a fault of the program, 2 bad input or a fault of the machine (one
    line), 3 ended by a diagnostic, 130 by Ctrl-C, 143 by a scheduler (SIGTERM, SIGUSR1)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parse(arguments)
    from comal_fast.system.terminal import say_less

    say_less(quiet="quiet" in args, verbose="verbose" in args)
    if world() == 1:
        return _attempt(args, arguments, tell)
    from comal_fast.distributed.group import claim_failure, run_rank

    def tell_once(message: str) -> None:
        if claim_failure():
            tell(message)

    return run_rank(lambda: _attempt(args, arguments, tell_once))


def tell(message: str) -> None:
    """Write a message to stderr, in one write: several ranks may share it."""
    sys.stderr.write(f"{message}\n")


def _attempt(args: argparse.Namespace, arguments: list[str], tell: Callable[[str], None]) -> int:
    import shlex
    import traceback

    from comal_fast.system.doing import done_when
    from comal_fast.system.signals import Terminated, listening

    try:
        if world() > 1 and "ranks" not in args:
            raise InputError(f"{arguments[0]}: one process does it all; leave torchrun out")
        with listening():
            return args.run(args)
    except InputError as error:
        if "verbose" in args:
            tell("".join(traceback.format_exception(error)).rstrip())
        tell(f"comal-fast: error: {error}")
        return 2
    except KeyboardInterrupt:
        tell(
            "\ncomal-fast: stopped; nothing finished is lost. To go on from here: "
            f"comal-fast {shlex.join(arguments)}"
        )
        return 130
    except Terminated as error:
        tell(
            f"\ncomal-fast: ended by {error}; nothing finished is lost. To go on from here: "
            f"comal-fast {shlex.join(arguments)}"
        )
        return Terminated.STATUS
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BROKEN_PIPE
        during = done_when(error)
        from comal_fast.system.faults import of_the_machine

        if why := of_the_machine(error):
            tell(
                f"comal-fast: error: {f'{during}: ' if during else ''}{why}. Nothing finished is "
                f"lost; to go on from here: comal-fast {shlex.join(arguments)}"
            )
            return 2
        tell(
            f"comal-fast: a fault of the program{f', in {during}' if during else ''}; nothing "
            f"finished is lost. To go on from here: comal-fast {shlex.join(arguments)}\n"
            f"{''.join(traceback.format_exception(error)).rstrip()}"
        )
        return 1


def _reader_has_gone() -> bool:
    """Whether nobody reads what is written to stdout any more."""
    import select

    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments parsed, key=value wherever it stands.

    argparse takes those behind an option for unknown.
    """
    top = parser(_verb(arguments))
    args, rest = top.parse_known_args(arguments)
    unknown = [
        r for r in rest if r.startswith("-") or "=" not in r or not hasattr(args, "overrides")
    ]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line, with one verb or with all of them."""
    top = _Parser(prog="comal-fast")
    top.add_argument("--version", action="version", version=f"comal-fast {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB", action=_Verbs)
    for module in dict.fromkeys(VERBS[name][0] for name in ([verb] if verb else VERBS)):
        importlib.import_module(f"comal_fast.{module}").register(verbs)
    return top


def _verb(arguments: list[str]) -> str | None:
    """The verb that is meant. Where there is none the program ends: help, or status 2."""
    words = [a for a in arguments if not a.startswith("-")]
    if words and words[0] in VERBS:
        return words[0]
    if "--version" in arguments:
        print(f"comal-fast {__version__}")
        raise SystemExit(0)
    if not words:
        asked = not {"-h", "--help"}.isdisjoint(arguments)
        print(OVERVIEW, end="", file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    near = difflib.get_close_matches(words[0], VERBS, 1)
    meant = f"; did you mean {near[0]}?" if near else "; comal-fast --help lists them"
    tell(f"comal-fast: error: {words[0]!r} is no verb{meant}")
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    """Knows -q and -v, in front of the verb or behind it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        said = self.add_mutually_exclusive_group()
        for flag, name, text in (
            ("-q", "quiet", "only results and warnings, no progress"),
            ("-v", "verbose", "what libraries say too, and where an error came from"),
        ):
            said.add_argument(
                flag, f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text
            )


class _Verbs(argparse._SubParsersAction):
    """Says of a verb what `verbs.py` does."""

    def add_parser(self, name: str, **options: Any) -> Any:
        text = VERBS[name][1]
        return super().add_parser(name, **{"help": text, "description": f"{text}.", **options})
