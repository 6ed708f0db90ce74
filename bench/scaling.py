"""Time and peak memory against tokens, with fitted exponents: time ∝ Tᵃ, memory ∝ Tᵇ."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from bench import head, memory, options, record, show
from bench.honesty import CHECK_TOKENS
from bench.peers import chosen, contenders
from bench.peers.base import Where
from bench.problem import DATA
from comal_fast.terminal import progress

PEERS = ("torch", "trl")
MIB = 1 << 20


def register(benches: Any) -> None:
    """Add `scaling`."""
    parser = benches.add_parser("scaling", help="time and memory against tokens")
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "repeat", "peers")
    options.add(parser, "json", "plot")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, time and measure each contender at each size; fit; print."""
    device, dtype = args.device, options.dtype(args)
    hidden = options.default(args, "hidden", 576, 4096)
    vocab = options.default(args, "vocab", 49152, 128256)
    cuda_sizes = [2048, 4096, 8192, 16384, 32768, 65536]
    sizes = sorted(set(options.default(args, "tokens", [512, 1024, 2048, 4096], cuda_sizes)))
    if len(sizes) < 2:
        raise ValueError("--tokens: an exponent needs at least two sizes")
    families = chosen(args.peers or PEERS)
    make = DATA["random"]
    where = Where(device, dtype, vocab)
    right, rows = head.checked(
        contenders(families, where), make(CHECK_TOKENS, hidden, vocab, dtype, device), dtype
    )
    right = [(contender, row) for contender, row in right if contender.exact]
    repeat = options.default(args, "repeat", 2, 10)
    for tokens in sizes:
        p = make(tokens, hidden, vocab, dtype, device)
        rows += head.measure(p, right, dtype, repeat)
        del p
        # the variant that was fastest at the first size is the one that goes on
        fastest = {(row["name"], row["variant"]) for row in rows if "seconds" in row}
        right = [entry for entry in right if (entry[0].name, entry[0].variant) in fastest]
    measured = [row for row in rows if "seconds" in row and row["name"] != head.FLOOR]
    family_of = {
        c.title: f for f in families for c in contenders([f], where) if hasattr(c, "title")
    }
    by_title = {contender.title: contender for contender, _ in right}
    with progress("peak memory", len(measured), "runs") as advance:
        for row in measured:
            title = f"{row['name']}, {row['variant']}" if row["variant"] else row["name"]
            one = by_title[title]
            wanted = memory.spec(family_of[title], one, row["tokens"], hidden, vocab, dtype, device)
            row |= memory.extra(wanted)
            advance()
    result = {
        "bench": "scaling",
        **record.environment(device),
        "shape": {"hidden": hidden, "vocab": vocab, "dtype": str(dtype).removeprefix("torch.")},
        "rows": rows,
        "fits": fits(rows),
    }
    show.scaling(result)
    record.write(result, args.json)
    if args.plot:
        from bench import plots

        record.save_plot(result, plots.scaling(result), args.plot)
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
