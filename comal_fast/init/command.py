"""The verb `comal-fast init`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError

DESCRIPTION = """\
Write a first configuration from five answers, by options or asked for on a terminal: model,
prompts, who judges, the GPU's memory, where the run goes. It fits that memory by the plan's
estimate."""
QUESTIONS = {  # option → (question, default)
    "model": ("Model: hub name, folder, or package:NAME", None),
    "prompts": ("Prompts: file, hub dataset, or builtin", "builtin"),
    "oracle": (
        "Who judges: criteria, bradley_terry:MODEL, general_preference:MODEL, pairwise_lm:MODEL, "
        "python:FILE.py:NAME",
        "criteria",
    ),
    "gpu_memory": ("GPU memory, such as 80GiB; cpu for none", "auto"),
    "output": ("Run directory", None),
}


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `init` parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "init",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.yaml")
    for name, (question, default) in QUESTIONS.items():
        says = f" (default: {default})" if default else ""
        parser.add_argument(f"--{name.replace('_', '-')}", help=question + says)
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file; returns 0, or raises InputError before anything is written."""
    from comal_fast.store.files import check_target, write_all
    from comal_fast.system.terminal import console

    if not args.file.endswith((".yaml", ".yml")):
        raise InputError(f"{args.file}: its name must end in .yaml")
    check_target(args.file, "FILE.yaml")
    if Path(args.file).exists() and not args.force:
        raise InputError(f"{args.file}: it is there already; give --force to write over it")
    given = {name: getattr(args, name) for name in QUESTIONS}
    answers = complete(given, ask if sys.stdin.isatty() else None, Path(args.file).stem)
    from comal_fast.init.write import Answers, configuration, to_yaml

    memory = _memory(answers["gpu_memory"])
    tree = configuration(
        Answers(answers["model"], answers["prompts"], answers["oracle"], memory, answers["output"])
    )
    words = ["comal-fast", "init", args.file]
    for name, value in answers.items():
        words += [f"--{name.replace('_', '-')}", value]
    write_all({args.file: to_yaml(tree, shlex.join(words)).encode()})
    console.print(f"wrote {args.file}", soft_wrap=True)
    console.print(
        f"next: comal-fast doctor {args.file}, and comal-fast run {args.file}", soft_wrap=True
    )
    return 0


def complete(
    given: dict[str, str | None], ask: Callable[[str, str | None], str] | None, name: str
) -> dict[str, str]:
    """Every answer: given, asked for, or its default. InputError where there is none of these."""
    answers: dict[str, str] = {}
    for option, (question, default) in QUESTIONS.items():
        value = given[option]
        default = f"runs/{name}" if option == "output" else default
        if value is None and ask is not None:
            value = ask(question, default)
        value = value or default
        if not value:
            raise InputError(f"--{option}: missing; {question}")
        answers[option] = value
    return answers


def ask(question: str, default: str | None) -> str:
    """On the terminal; an empty line is the default."""
    return input(f"{question}{f' [{default}]' if default else ''}: ").strip()


def _memory(text: str) -> float | None:
    """Bytes; None on a CPU. `auto`: of the GPU that is here, if there is one."""
    if text == "cpu":
        return None
    if text != "auto":
        from comal_fast.config.sizes import parse_bytes

        return float(parse_bytes(text, "--gpu-memory"))
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)
