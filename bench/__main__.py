"""`python -m bench BENCH`: how fast the loss library is, and what the compiler made of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import all as all_
from bench import compile as compile_
from bench import head, memory, model, peak, profile, scaling, step, table
from bench.options import Parser
from comal_fast.terminal import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on bad input."""
    parser = Parser(prog="python -m bench", description=__doc__)
    benches = parser.add_subparsers(required=True, metavar="BENCH", parser_class=Parser)
    for bench in (head, step, memory, peak, scaling, profile, compile_, model, table, all_):
        bench.register(benches)
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        return args.run(args)
    except ValueError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
