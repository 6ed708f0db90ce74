"""Time a training step with one optimisation ("lever") more at a time, on one model."""

from __future__ import annotations

import argparse

from bench.bench import Bench, Call
from bench.benches import step
from bench.record import Record
from bench.trainers import CONTESTANTS

# as the step was measured first, then with a lever more each; without Liger's kernels first
LEVERS = [key for key in CONTESTANTS if CONTESTANTS[key].lever]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `levers`."""
    step.add_sizes(parser)


def run(args: argparse.Namespace) -> Record:
    """Return the step's time with each lever; the first row is what the others must agree with."""
    return step.measured(args, LEVERS, "levers")


BENCH = Bench(
    verb="levers",
    help="a training step, with one lever more at a time",
    add_options=add_options,
    run=run,
    records=("levers",),
    show=step.show,
    markdown=step.markdown,
    draw=step.draw,
    failed=step.BENCH.failed,
    in_all=(Call("cuda", 1),),
)
