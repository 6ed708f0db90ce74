"""Simulate the coverage of every 95 % interval that a verb prints.

    python tests/coverage/run.py --replications 1000 --seed 0 --record bench/results/coverage.json

Exit status 1 where a row's coverage is out of its bounds by more than two of its standard errors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from coverage_suite import Coverage, load_rows, measure_coverage, select_rows

ERRORS = 2.0  # standard errors by which a row may miss its bounds


def main() -> int:
    """Run the rows, print a line for each, write the record, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only the rows whose name holds all of these")
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--record", type=Path, help="write the coverage of all rows as JSON")
    args = parser.parse_args()
    rows = select_rows(load_rows(), args.words)

    def measure(place: int) -> Coverage:
        return measure_coverage(rows[place], args.replications, args.seed)

    start, found = time.monotonic(), []
    for coverage in _map_in_order(measure, len(rows), args.jobs):
        print(_line(coverage), flush=True)
        found.append(coverage)
    out = [each for each in found if not each.is_within(ERRORS)]
    print(f"{len(found)} rows in {time.monotonic() - start:.0f} s, {len(out)} out of bounds")
    if args.record:
        record = {
            "date": datetime.date.today().isoformat(),
            "command": f"make coverage SEED={args.seed}",
            "seed": args.seed,
            "replications": args.replications,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("comal-fast", "numpy", "scipy")},
            },
            "rows": [each.to_json() for each in found],
        }
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(out))


_measure = None  # what the forked processes call: the rows' functions cannot be pickled


def _call(place: int) -> Coverage:
    assert _measure is not None
    coverage = _measure(place)
    return coverage


def _map_in_order(measure, count, jobs):
    global _measure
    _measure = measure
    if jobs == 1:
        yield from map(measure, range(count))
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_call, range(count))


def _line(coverage: Coverage) -> str:
    if not coverage.answered:
        return f"   none printed            {coverage.row.name}"
    mark = "  " if coverage.is_within(ERRORS) else "! "
    answered = coverage.answered / coverage.replications
    share = "" if answered == 1 else f" (printed in {answered:.0%})"
    error = "" if math.isnan(coverage.error) else f" ± {coverage.error:.1%}"
    width = f"width {coverage.width:.3f}"
    return f"{mark}{coverage.share:6.1%}{error}  {width}  {coverage.row.name}{share}"


if __name__ == "__main__":
    sys.exit(main())
