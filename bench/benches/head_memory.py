"""Peak memory of the head, beyond its inputs and gradients.

On a CPU the resident high-water mark of a fresh process for each measurement, on a GPU the
allocator's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.contender import Contender, Missing
from bench.measure.honesty import solve
from bench.measure.isolated import Failed, run_isolated
from bench.peers import FAMILIES, chosen, contenders
from bench.problem import Size
from bench.record import Record, Row, reason
from bench.render import plots, terminal
from bench.render.formats import Rows, full_name, mib, shape_text
from bench.render.markdown import section
from comal_fast.system.peak import bytes_in_use, peak_bytes, start_peak
from comal_fast.system.terminal import progress

TITLE = "Memory beyond inputs and gradients"
WARM_TOKENS = 128  # a first run at this size makes what libraries allocate once
QUIET_HEAP = {  # glibc gives freed memory back at once, so the resident set is what is in use
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}


@dataclass(frozen=True)
class Spec:
    """One measurement; it pickles, so that a process of its own can make it."""

    family: str
    name: str
    variant: str
    tokens: int
    hidden: int
    vocab: int
    dtype: str
    device: str

    @classmethod
    def of(cls, family: str, row: Row, size: Size) -> Spec:
        """The measurement that belongs to a contender's row."""
        where = {**size.text(), "device": str(size.device)}
        return cls(family, row["name"], row["variant"], row["tokens"], **where)

    @property
    def size(self) -> Size:
        """The head that is measured."""
        return Size(self.hidden, self.vocab, getattr(torch, self.dtype), torch.device(self.device))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `memory`."""
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "peers")


def run(args: argparse.Namespace) -> Record:
    """The memory of each contender and variant, at each number of tokens."""
    size = options.size(args)
    tokens = options.default(args, "tokens", [1024], [8192])
    rows: list[Row] = []
    work: list[tuple[str, Contender, int]] = []
    for family in chosen(args.peers):
        for found in contenders([family], size):
            if isinstance(found, Missing):
                rows.append({"name": found.name, "why": found.why})
            else:
                work += [(family, found, n) for n in tokens]
    with progress("peak memory", len(work), "runs") as advance:
        for family, found, n in work:
            row = {**found.text(), "tokens": n}
            rows.append(row | extra(Spec.of(family, row, size)))
            advance()
    return record.new("memory", size.device, shape=size.text(), rows=rows)


def extra(wanted: Spec) -> Row:
    """{"extra_bytes"}: the peak beyond what was held before and the gradients; or {"why"}."""
    if torch.device(wanted.device).type == "cuda":
        try:
            return {"extra_bytes": measure(wanted)}
        except Exception as error:
            return {"why": reason(error)}
        finally:
            torch.cuda.empty_cache()
    try:
        return {"extra_bytes": run_isolated(measure, wanted, environment=QUIET_HEAP)}
    except Failed as error:
        return {"why": str(error)}


def measure(wanted: Spec) -> int:
    """Extra bytes of one contender, in this process."""
    size = wanted.size
    contender = next(
        c
        for c in FAMILIES[wanted.family](size)
        if isinstance(c, Contender) and (c.name, c.variant) == (wanted.name, wanted.variant)
    )
    p = size.problem(wanted.tokens)
    solve(contender, size.problem(WARM_TOKENS), size.dtype)
    start_peak(size.device)
    before = bytes_in_use(size.device)
    solve(contender, p, size.dtype)
    gradients = (p.hidden.numel() + p.weight.numel()) * p.hidden.itemsize
    return max(0, peak_bytes(size.device) - before - gradients)


def show(found: Record) -> None:
    """Print extra memory by contender and tokens."""
    terminal.table(f"{TITLE}: {shape_text(found)}", memory_rows(found))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """Extra memory as a section of a document."""
    return section(found, memory_rows(found))


def memory_rows(found: Record) -> Rows:
    """A row a contender, of its leanest variant; a column a number of tokens."""
    sizes = list(dict.fromkeys(r["tokens"] for r in found["rows"] if "extra_bytes" in r))
    rows = []
    for variant in leanest(found["rows"]):
        size = {r["tokens"]: mib(r["extra_bytes"]) for r in variant}
        rows.append([full_name(variant[0]), *(size.get(n, "") for n in sizes)])
    return ["contender", *(f"MiB at {n} tokens" for n in sizes)], rows


def draw(found: Record) -> bytes:
    """A picture: lines of the leanest variants against tokens, or bars of all at one size."""
    rows = [r for r in found["rows"] if "extra_bytes" in r]
    if len({r["tokens"] for r in rows}) > 1:
        rows = [row for variant in leanest(rows) for row in variant]
        return plots.lines(rows, [plots.Panel(TITLE, "MiB", extra_mib)])
    title = f"{TITLE}, {rows[0]['tokens']} tokens"
    return plots.amounts(rows, lambda r: r["extra_bytes"] / 2**20, title, "MiB")


def leanest(rows: list[Row]) -> list[list[Row]]:
    """The rows of each contender's variant that is leanest at the most tokens; leanest first."""
    measured = [r for r in rows if "extra_bytes" in r]
    best: dict[str, Row] = {}
    for r in sorted(measured, key=lambda r: (-r["tokens"], r["extra_bytes"])):
        best.setdefault(r["name"], r)
    return [
        [r for r in measured if (r["name"], r["variant"]) == (one["name"], one["variant"])]
        for one in sorted(best.values(), key=lambda r: r["extra_bytes"])
    ]


def extra_mib(row: Row) -> float | None:
    """A row's extra memory in MiB, if it was measured."""
    return row["extra_bytes"] / 2**20 if "extra_bytes" in row else None


BENCH = Bench(
    verb="memory",
    help="peak memory beyond inputs and gradients",
    add_options=add_options,
    run=run,
    records=("memory",),
    show=show,
    markdown=markdown,
    draw=draw,
    in_all=(Call("cuda", 7),),
)
