"""`python -m bench BENCH`: how fast the loss library is, and what the compiler made of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import run_all
from bench.benches import cost, head, head_memory, kernels, profile, scaling, step, step_memory
from bench.options import Parser
from bench.render import documents
from comal_fast.errors import InputError
from comal_fast.system.terminal import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on bad input."""
    parser = Parser(prog="python -m bench", description=__doc__)
    benches = parser.add_subparsers(required=True, metavar="BENCH", parser_class=Parser)
    for bench in (
        head,
        step,
        head_memory,
        step_memory,
        scaling,
        profile,
        kernels,
        cost,
        documents,
        run_all,
    ):
        bench.register(benches)
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        return args.run(args)
    except InputError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
