"""The verb `comal-fast completion`."""

from __future__ import annotations

import argparse
from typing import Any

from comal_fast.errors import InputError

_INSTALL = {
    "bash": "comal-fast completion bash > ~/.local/share/bash-completion/completions/comal-fast",
    "zsh": "comal-fast completion zsh > a folder of $fpath, as _comal-fast",
    "fish": "comal-fast completion fish > ~/.config/fish/completions/comal-fast.fish",
}


def register(verbs: Any) -> None:
    """Add `completion`."""
    verb = verbs.add_parser(
        "completion",
        description="Print the script by which a shell completes verbs, options and files: "
        + "; ".join(_INSTALL.values())
        + ".",
    )
    verb.add_argument("shell", choices=tuple(_INSTALL), metavar="SHELL", help="bash, zsh or fish")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script; returns 0, or raises InputError where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise InputError("completion: shtab is not installed; pip install shtab") from None
    from comal_fast.cli import parser

    print(shtab.complete(_with_files(parser()), shell=args.shell))
    return 0


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same, its positional arguments completed as files."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _with_files(below)
        elif not action.option_strings and action.choices is None:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser
