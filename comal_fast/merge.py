"""The verb `comal-fast merge`: an iterate of a LoRA run as a plain transformers folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comal_fast.errors import InputError

if TYPE_CHECKING:
    from comal_fast.context import Context

DESCRIPTION = """\
Add the adapter of an iterate to the weights it rests on, and write them as a plain transformers
folder in the run's `model.dtype`. Under `model.quantization=nf4` these weights are the 4-bit ones
that training saw, dequantised, not the original ones."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `merge` parser; its `run` default is the function that executes it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "merge",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument("output", metavar="FOLDER", type=Path, help="must not exist yet")
    parser.add_argument("--iterate", type=int, help="default: the run's result")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Execute `comal-fast merge`; returns 0, or raises InputError before anything is written."""
    from comal_fast.config import load_saved
    from comal_fast.store.directory import RunDirectory

    directory = RunDirectory(args.run_dir)
    config = load_saved(directory.config)
    if config.model.lora is None:
        raise InputError(
            f"{args.run_dir}: trained without model.lora: iterations/NNNN/model are whole models"
        )
    if args.output.exists():
        raise InputError(f"{args.output}: exists already; give a new folder")
    iterate = directory.chosen(args.iterate)
    from comal_fast.system.terminal import console  # torch and transformers load from here on

    merge(args.run_dir, iterate, args.output)
    console.print(f"π_{iterate} of {args.run_dir}, merged: {args.output}", soft_wrap=True)
    return 0


def merge(run_dir: Path, iterate: int, output: Path) -> None:
    """Write π_iterate (≥ 1) of a LoRA run to the folder `output`, as one plain model."""
    from comal_fast.config import load_saved
    from comal_fast.context import Context
    from comal_fast.store.artefacts import make_key, write_folder
    from comal_fast.store.directory import RunDirectory

    saved = load_saved(RunDirectory(run_dir).config)
    context = Context(saved.model_copy(update={"output_dir": str(run_dir)}))
    key = make_key("merge", context.policies.key(iterate))  # says so where there is no such iterate
    model = merged(context, iterate)
    with write_folder(output, key) as temporary:
        model.save_pretrained(temporary)
        context.tokenizer.save_pretrained(temporary)


def merged(context: Context, iterate: int) -> Any:
    """π_iterate (≥ 1) of a LoRA run, its adapter added to the weights.

    InputError where it can't be.
    """
    from peft import PeftModel

    policies = context.policies
    folder = context.directory.iteration(iterate).model
    policies.check_base(iterate)
    folder.verify()
    base = policies.load(0)
    if context.config.model.quantization == "nf4":
        base = base.dequantize(dtype=base.dtype)
    policy = PeftModel.from_pretrained(base, str(folder.path))
    try:
        return policy.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are no numbers
        raise InputError(f"{folder.path}: it can't be merged ({error})") from None
