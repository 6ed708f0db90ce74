"""Peak memory of the head, beyond its inputs and gradients.

On a CPU the resident high-water mark of a fresh process for each measurement, on a GPU the
allocator's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from bench import options, record
from bench.contender import Contender, Missing
from bench.measure.honesty import solve
from bench.measure.isolated import Failed, call
from bench.peers import FAMILIES, chosen, contenders
from bench.problem import Size
from bench.record import reason
from bench.render import terminal as show
from comal_fast.system.peak import bytes_in_use, peak_bytes, start_peak
from comal_fast.system.terminal import progress

WARM_TOKENS = 128  # a first run at this size makes what libraries allocate once
QUIET_HEAP = {  # glibc gives freed memory back at once, so the resident set is what is in use
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}


@dataclass(frozen=True)
class Spec:
    """One measurement."""

    family: str
    name: str
    variant: str
    tokens: int
    hidden: int
    vocab: int
    dtype: str
    device: str

    @classmethod
    def of(cls, family: str, row: dict[str, Any], size: Size) -> Spec:
        """The measurement that belongs to a contender's row."""
        where = {**size.text(), "device": str(size.device)}
        return cls(family, row["name"], row["variant"], row["tokens"], **where)

    @property
    def size(self) -> Size:
        return Size(self.hidden, self.vocab, getattr(torch, self.dtype), torch.device(self.device))


def register(benches: Any) -> None:
    """Add `memory`."""
    parser = benches.add_parser("memory", help="peak memory beyond inputs and gradients")
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "peers", "json", "plot")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure each contender and variant, print; write where asked."""
    size = options.size(args)
    tokens = options.default(args, "tokens", [1024], [8192])
    rows: list[dict[str, Any]] = []
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
    result = {
        "bench": "memory",
        **record.environment(size.device),
        "shape": size.text(),
        "rows": rows,
    }
    show.memory(result)
    record.finish(result, args)
    return 0


def extra(wanted: Spec) -> dict[str, Any]:
    """{"extra_bytes"}: the peak less what was in use before and the gradients; or {"why"}."""
    if torch.device(wanted.device).type == "cuda":
        try:
            return {"extra_bytes": measure(wanted)}
        except Exception as error:
            return {"why": reason(error)}
        finally:
            torch.cuda.empty_cache()
    try:
        return {"extra_bytes": call(measure, wanted, environment=QUIET_HEAP)}
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
