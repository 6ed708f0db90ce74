"""The verb `comal-fast data inspect`: what a model would be given of a data file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from comal_fast.config import Config, load_config
from comal_fast.config.load import apply_override
from comal_fast.config.schema import build
from comal_fast.errors import InputError

if TYPE_CHECKING:
    from comal_fast.inspection.tally import Tally

DESCRIPTION = """\
Show the first rows of a data file as tokens of a model's chat template, what of them is trained
on, how long all are, how many come twice, are left out and why, and which a run would refuse.
Rows of chosen and rejected answers are taken as pairs, others as prompts; those of a configuration
as it names them."""
_READ = ("data.", "model.", "generation.max_new_tokens")


def register(verbs: Any) -> None:
    """Add `data`."""
    parser = verbs.add_parser(
        "data",
    )
    below = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    verb = below.add_parser(
        "inspect",
        help="tokens, what is trained on, lengths, what is left out and why",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("file", metavar="FILE", help="as data.prompts, or a configuration")
    verb.add_argument("overrides", nargs="*", metavar="key.path=value", help="options set here")
    verb.add_argument("--model", help="a name or folder, for its tokenizer")
    verb.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (3)")
    verb.add_argument("--json", action="store_true", help="print everything as JSON")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it; returns 0, or raises InputError for a file that a run would refuse."""
    if args.rows < 0:
        raise InputError(f"--rows: {args.rows} is less than 0")
    config = _config(args)
    from comal_fast.inspection.show import show
    from comal_fast.inspection.tally import tally
    from comal_fast.model.load import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    found = tally(config, tokenizer, args.rows, guess=not _is_configuration(args.file))
    if args.json:
        print(json.dumps(found.to_dict(tokenizer), ensure_ascii=False, indent=2))
    else:
        show(found, tokenizer, config)
    _refuse(found, config)
    return 0


def _config(args: argparse.Namespace) -> Config:
    for override in args.overrides:
        if not override.startswith(_READ):
            raise InputError(f"{override}: `data inspect` reads {', '.join(_READ)} alone")
    if _is_configuration(args.file):
        more = [f"model.name_or_path={args.model}"] if args.model else []
        return load_config(args.file, [*args.overrides, *more])
    if any(o.startswith(("data.prompts=", "data.pairs=")) for o in args.overrides):
        raise InputError(f"data inspect: {args.file} is what is read; leave data.prompts and pairs")
    tree: dict[str, Any] = {"data": {"prompts": args.file}}
    if args.model:
        tree["model"] = {"name_or_path": args.model}
    for override in args.overrides:
        apply_override(tree, override)
    if "model" not in tree:
        raise InputError("data inspect: give --model NAME, whose tokenizer and template are used")
    return build(tree)


def _is_configuration(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _refuse(found: Tally, config: Config) -> None:
    from comal_fast.inspection.tally import named

    if found.refused:
        rows = f"{len(found.refused)} of {found.rows} rows"
        raise InputError(
            f"{named(config)[0]}: a run would refuse {rows}, the first: {found.refused[0]}"
        )
