"""`python -m bench BENCH`: how fast the loss library is, and what the compiler made of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import documents, run_all
from bench.benches import discover
from bench.options import Parser
from comal_fast.errors import InputError
from comal_fast.system.terminal import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on bad input."""
    parser = Parser(prog="python -m bench", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="BENCH", parser_class=Parser)
    for bench in discover():
        bench.register(verbs)
    documents.register(verbs)
    documents.register_adopt(verbs)
    run_all.register(verbs)
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        return args.run(args)
    except InputError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
