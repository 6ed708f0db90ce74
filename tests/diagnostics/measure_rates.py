"""Count in how many simulated runs of 18 iterations each diagnostic fires at least once.

    python tests/diagnostics/measure_rates.py --runs 400 --record bench/results/diagnostics.json

Exit status 1 where a healthy kind of runs is warned about too often, or a failing one too rarely,
by more than two standard errors.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from run_kinds import CHECKED, KINDS, Rates, measure_rates
from simulated_runs import ITERATIONS

ERRORS = 2.0  # standard errors by which a rate may miss what is asked of it
SEEDS = 10  # each makes a part of the runs, with games and starts of its own


def main() -> int:
    """Simulate all kinds of runs, print a line for each, write the record, return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400, help="of each kind, a multiple of 10")
    parser.add_argument("--prompts", type=int, nargs="+", default=[56, 256])
    parser.add_argument("--seed", type=int, default=0, help="the first of ten")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--record", type=Path, help="write all rates as JSON")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="only these")
    args = parser.parse_args()
    start, found = time.monotonic(), []
    cells = list(product(args.kinds, args.prompts))
    tasks = [(k, n, args.runs // SEEDS, args.seed + s) for k, n in cells for s in range(SEEDS)]
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        results = pool.imap(_measure, tasks)
        for kind, prompts in cells:
            rates = sum((next(results) for _ in range(SEEDS)), Rates(kind, prompts))
            print(_line(rates), flush=True)
            found.append(rates)
    wrong = [rates for rates in found if rates.misses(ERRORS)]
    print(f"{len(found)} rows in {time.monotonic() - start:.0f} s, {len(wrong)} out of bounds")
    if args.record:
        record = {
            "date": datetime.date.today().isoformat(),
            "command": f"make diagnostics SEED={args.seed}",
            "seeds": [args.seed + s for s in range(SEEDS)],
            "runs": args.runs // SEEDS * SEEDS,
            "iterations": ITERATIONS,
            "checks": CHECKED,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("comal-fast", "numpy", "scipy")},
            },
            "rows": [rates.to_json() for rates in found],
        }
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(wrong))


def _measure(task: tuple[str, int, int, int]) -> Rates:
    return measure_rates(*task)


def _line(rates: Rates) -> str:
    mark = "! " if rates.misses(ERRORS) else "  "
    shares = "  ".join(f"{name} {rates.share(name):.1%}" for name in CHECKED if rates.fired[name])
    return f"{mark}{rates.kind:36} {rates.prompts:3} prompts  {shares or 'none fired'}"


if __name__ == "__main__":
    sys.exit(main())
