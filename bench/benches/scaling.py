"""Time and peak memory against tokens, with fitted exponents: time ∝ Tᵃ, memory ∝ Tᵇ."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from bench import options, record
from bench.benches import head
from bench.benches import head_memory as memory
from bench.measure.honesty import CHECK_TOKENS
from bench.peers import chosen, contenders
from bench.render import terminal as show
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress

PEERS = ("torch", "trl")


def register(benches: Any) -> None:
    """Add `scaling`."""
    parser = benches.add_parser("scaling", help="time and memory against tokens")
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "repeat", "peers")
    options.add(parser, "json", "plot")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, time and measure each contender at each size; fit; print."""
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
    for tokens in counts:  # the fastest variant of each name at each size
        repeat = options.default(args, "repeat", 2, 10)
        rows += head.measure(size.problem(tokens), right, size.dtype, repeat)
    measured = [row for row in rows if "seconds" in row and row["name"] != head.FLOOR]
    with progress("peak memory", len(measured), "runs") as advance:
        for row in measured:
            family = family_of[row["name"], row["variant"]]
            row |= memory.extra(memory.Spec.of(family, row, size))
            advance()
    result = {
        "bench": "scaling",
        **record.environment(size.device),
        "shape": size.text(),
        "rows": rows,
        "fits": fits(rows),
    }
    show.scaling(result)
    record.finish(result, args)
    return 0


def fits(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
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
    """a of values ∝ tokensᵃ."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])
