"""Time and peak memory against tokens, with fitted exponents: time ∝ Tᵃ, memory ∝ Tᵇ."""

from __future__ import annotations

import argparse

import numpy as np

from bench import options, record
from bench.bench import Bench, Call
from bench.benches import head
from bench.benches import head_memory as memory
from bench.contender import FLOOR
from bench.measure.honesty import CHECK_TOKENS
from bench.peers import chosen, contenders
from bench.record import Record, Row
from bench.render import plots, terminal
from bench.render.formats import Rows, mib, shape_text
from bench.render.markdown import section
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

PEERS = ("torch", "trl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `scaling`."""
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "repeat", "peers")


def run(args: argparse.Namespace) -> Record:
    """Time and memory of each right contender at each size, and the fits."""
    size = options.size(args)
    cuda_sizes = [2048, 4096, 8192, 16384, 32768, 65536]
    counts = sorted(set(options.default(args, "tokens", [512, 1024, 2048, 4096], cuda_sizes)))
    if len(counts) < 2:
        raise InputError("--tokens: an exponent needs at least two sizes")
    families = chosen(args.peers or PEERS)
    found = {family: contenders([family], size) for family in families}
    family_of = {(c.name, getattr(c, "variant", "")): f for f in families for c in found[f]}
    candidates = [candidate for family in families for candidate in found[family]]
    right, rows = head.checked(candidates, size.problem(CHECK_TOKENS), size.dtype)
    right = [(contender, row) for contender, row in right if contender.exact]

    def recorded() -> Record:
        return record.new("scaling", size.device, shape=size.text(), rows=rows, fits=fits(rows))

    for tokens in counts:  # the fastest variant of each name at each size
        repeat = options.default(args, "repeat", 2, 10)
        rows += head.measure(size.problem(tokens), right, size.dtype, repeat)
        args.keep(recorded())
    measured = [row for row in rows if "seconds" in row and row["name"] != FLOOR]
    with progress("peak memory", len(measured), "runs") as advance:
        for row in measured:
            family = family_of[row["name"], row["variant"]]
            row |= memory.extra(memory.Spec.of(family, row, size))
            advance()
    return recorded()


def fits(rows: list[Row]) -> dict[str, dict[str, float]]:
    """By name: the exponents of time and extra memory, by least squares on logarithms."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["name"] for row in rows if "seconds" in row):
        mine = [row for row in rows if row["name"] == name and "seconds" in row]
        if len(mine) < 2:
            continue
        tokens = [row["tokens"] for row in mine]
        found[name] = {"time": exponent(tokens, [row["seconds"]["median"] for row in mine])}
        extra = [row["extra_bytes"] for row in mine if row.get("extra_bytes")]
        if len(extra) == len(mine):
            found[name]["memory"] = exponent(tokens, extra)
    return found


def exponent(tokens: list[int], values: list[float]) -> float:
    """The a of values ∝ tokensᵃ."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def show(found: Record) -> None:
    """Print times, memory and the fitted exponents."""
    terminal.table(f"Against tokens: {shape_text(found)}", scaling_rows(found))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """Times, memory and exponents as a section of a document."""
    return section(found, scaling_rows(found))


def scaling_rows(found: Record) -> Rows:
    """A row a contender: time and memory at each size, and the exponents."""
    timed = [r for r in found["rows"] if "seconds" in r]
    sizes = list(dict.fromkeys(r["tokens"] for r in timed))
    unit, scale = ("s", 1.0) if max(r["seconds"]["median"] for r in timed) > 1 else ("ms", 1e3)
    rows = []
    for name in dict.fromkeys(r["name"] for r in timed):
        mine = {r["tokens"]: r for r in timed if r["name"] == name}
        cells = []
        for n in sizes:
            extra = mine.get(n, {}).get("extra_bytes")
            time = f"{mine[n]['seconds']['median'] * scale:.2f}" if n in mine else "–"
            cells.append(time + (f" · {mib(extra)}" if extra is not None else ""))
        fit = found["fits"].get(name, {})
        rows.append(
            [name, *cells, *(f"{fit[k]:.2f}" if k in fit else "" for k in ("time", "memory"))]
        )
    columns = [f"{n} tokens: {unit} · extra MiB" for n in sizes]
    return ["contender", *columns, "exponent of time", "of memory"], rows


def draw(found: Record) -> bytes:
    """A picture: time and extra memory against tokens."""
    time, extra = (
        {name: fit[k] for name, fit in found["fits"].items() if k in fit}
        for k in ("time", "memory")
    )
    panels = [
        plots.Panel("Time", "seconds", lambda r: r["seconds"]["median"], time, log=True),
        plots.Panel(memory.TITLE, "MiB", memory.extra_mib, extra),
    ]
    return plots.lines([r for r in found["rows"] if "seconds" in r], panels)


BENCH = Bench(
    verb="scaling",
    help="time and memory against tokens",
    add_options=add_options,
    run=run,
    records=("scaling",),
    show=show,
    markdown=markdown,
    draw=draw,
    in_all=(Call("cpu", 4, "--tokens 256 1024 2048"), Call("cuda", 4)),
)
