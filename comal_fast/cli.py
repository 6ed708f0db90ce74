"""The command line: a verb each for the loop, its phases, the exact game and the report."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from comal_fast import __version__, merge, replay
from comal_fast.compare import command as compare
from comal_fast.config import command as options
from comal_fast.doctor import command as doctor
from comal_fast.errors import InputError
from comal_fast.export import command as export
from comal_fast.game import command as game
from comal_fast.init import command as init
from comal_fast.inspection import command as inspection
from comal_fast.lm_game import command as lm_game
from comal_fast.oracle_check import command as oracle_check
from comal_fast.plan import command as plan
from comal_fast.report import command as report
from comal_fast.runs import command as runs
from comal_fast.store.directory import PHASES
from comal_fast.sweep import command as sweep
from comal_fast.system.doing import done_when
from comal_fast.system.ranks import is_main, world
from comal_fast.system.signals import Terminated, listening
from comal_fast.system.terminal import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a fault of the program, 2 bad input or a fault of the machine (one
    line), 3 ended by a diagnostic, 130 by Ctrl-C, 143 by a scheduler (SIGTERM, SIGUSR1)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parse(arguments)
    quiet_libraries()
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
    try:
        if world() > 1 and args.run not in (_run, _phase):
            raise InputError(f"{arguments[0]}: one process does it all; leave torchrun out")
        with listening():
            return args.run(args)
    except InputError as error:
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
            return 128 + signal.SIGPIPE
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
    top = parser()
    args, rest = top.parse_known_args(arguments)
    unknown = [
        r for r in rest if r.startswith("-") or "=" not in r or not hasattr(args, "overrides")
    ]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, with all verbs."""
    top = argparse.ArgumentParser(prog="comal-fast", description=__doc__.split("\n")[0])
    top.add_argument("--version", action="version", version=f"comal-fast {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    run = verbs.add_parser("run", help="the whole loop, from prompts to report; resumes")
    _config_arguments(run)
    run.set_defaults(run=_run)
    for phase, text in PHASES.items():
        verb = verbs.add_parser(phase, help=text)
        _config_arguments(verb)
        verb.add_argument(
            "--iteration", type=int, help="default: the first whose model is not there yet"
        )
        verb.set_defaults(run=_phase, phase=phase)
    options.register(verbs)
    inspection.register(verbs)
    init.register(verbs)
    doctor.register(verbs)
    plan.register(verbs)
    sweep.register(verbs)
    compare.register(verbs)
    oracle_check.register(verbs)
    merge.register(verbs)
    replay.register(verbs)
    export.register(verbs)
    report.register(verbs)
    runs.register(verbs)
    game.register(verbs)
    lm_game.register(verbs)
    return top


def _config_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", metavar="CONFIG", help="YAML file")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")


def _run(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    config = load_config(args.config, args.overrides)
    from comal_fast.loop import run_all, serve  # torch loads only once the config is good

    if not is_main():
        serve(config)
        return 0
    return 3 if run_all(config)["ended"] else 0


def _phase(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    config = load_config(args.config, args.overrides)
    from comal_fast.loop import run_phase, serve

    if not is_main():
        serve(config)
        return 0
    run_phase(config, args.phase, args.iteration)
    return 0
