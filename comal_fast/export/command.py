"""The verb `comal-fast export`, and what it can write."""

from __future__ import annotations

import argparse
from typing import Any

from comal_fast.export import answers, model, pairs


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `export` parser with its verbs."""
    parser: argparse.ArgumentParser = subparsers.add_parser("export")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in (model, pairs, answers):
        verb.register(verbs)
