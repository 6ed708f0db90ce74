"""`python -m bench head`: time the prox loss from hidden states against its floor."""

from __future__ import annotations

import argparse
import sys

from bench.head import register


def main() -> int:
    """Exit status 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    register(parser.add_subparsers(required=True, metavar="BENCH"))
    args = parser.parse_args()
    try:
        return args.run(args)
    except ValueError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
