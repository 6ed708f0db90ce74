"""The verbs `comal-fast run` and, for each phase, `comal-fast PHASE`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from comal_fast.store.directory import PHASES
from comal_fast.system.ranks import is_main


def register(verbs: Any) -> None:
    """Add `run` and the phases; their `ranks` default says that torchrun may start them."""
    run = verbs.add_parser("run")
    _config_arguments(run)
    run.add_argument("--json", action="store_true", help="print summary.json, and nothing else")
    run.set_defaults(run=_run, ranks=True)
    for phase in PHASES:
        verb = verbs.add_parser(phase)
        _config_arguments(verb)
        verb.add_argument(
            "--iteration", type=int, help="default: the first whose model is not there yet"
        )
        verb.set_defaults(run=_phase, phase=phase, ranks=True)


def _config_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", metavar="CONFIG", help="YAML file")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")


def _run(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config
    from comal_fast.system.terminal import only_json

    with only_json(args.json):
        config = load_config(args.config, args.overrides)
        from comal_fast.loop import run_all, serve  # torch loads only once the config is good

        if not is_main():
            serve(config)
            return 0
        summary = run_all(config)
    if args.json:
        print(json.dumps(summary, indent=2))
    return 3 if summary["ended"] else 0


def _phase(args: argparse.Namespace) -> int:
    from comal_fast.config import load_config

    config = load_config(args.config, args.overrides)
    from comal_fast.loop import run_phase, serve

    if not is_main():
        serve(config)
        return 0
    run_phase(config, args.phase, args.iteration)
    return 0
