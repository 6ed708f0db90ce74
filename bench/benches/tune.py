"""Which tile softens a head's logits fastest here: each is checked, then all are timed by turns."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import options, record
from bench.bench import Bench, Call
from bench.measure.timing import interleaved, summary
from bench.record import Record
from bench.render import terminal
from bench.render.formats import Rows
from bench.render.markdown import section
from comal_fast.errors import InputError
from comal_fast.system.terminal import progress
from comal_kernels.head import Head

PRODUCT = "cuBLAS: the product alone"
RAW = "cuBLAS: float32 logits, swept"
WARM = 3  # runs of each before the clock
FARTHEST = 0.02  # a log-sum-exp's error, in nats, of bfloat16 factors


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `tune`."""
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "repeat")


def run(args: argparse.Namespace) -> Record:
    """Every tile that compiles here and is right, with its times; and why others have none."""
    if args.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("tune: needs a CUDA device, whose kernels it times")
    from comal_kernels.engines.triton import launch, tuning
    from comal_kernels.engines.triton.held_logits import RawLogits

    size = options.size(args)
    tokens = args.tokens or [8192]
    if len(tokens) > 1:
        raise InputError(f"--tokens: {len(tokens)} numbers; tune takes one")
    head, x, target = _problem(size, tokens[0])
    shift = launch.pick(head, x, target)
    exact = _log_sum_exp(head, x)
    soft = torch.empty(tokens[0], size.vocab, dtype=size.dtype, device=size.device)
    raw = RawLogits(head, tokens[0])
    jobs: dict[str, Any] = {
        PRODUCT: lambda: torch.mm(x, head.weight.t(), out=soft),
        RAW: lambda: raw.load(x, target, None),
    }
    rows: list[dict[str, Any]] = [{"name": PRODUCT}, {"name": RAW}]
    arch = launch.architecture(size.device)
    own, _ = launch.choose_tile(tuning.SOFTEN, head, x)
    for tile, group in variants(own):
        name = label(tile, group)
        row = {"name": name, "group": group, "chosen": (tile, group) == (own, tuning.GROUP)}
        rows.append(row | asdict(tile))

        def job(tile: tuning.Tile = tile, group: int = group) -> Tensor:
            with using(arch, tile, group):
                return launch.soften(head, x, shift, soft)

        try:
            error = float((shift + job().log() - exact).abs().max())
        except Exception as failure:  # what no compiler takes, or has no room for
            rows[-1]["error"] = " ".join(str(failure).split())[:200] or type(failure).__name__
            continue
        if not error <= FARTHEST:
            rows[-1]["error"] = f"wrong: a log-sum-exp is {error:.3g} off"
            continue
        jobs[name] = job
    repeat = args.repeat or 10
    for job in jobs.values():
        for _ in range(WARM if args.device.type == "cuda" else 0):
            job()
    shape = {"tokens": tokens[0], "hidden": size.hidden, "vocab": size.vocab}
    shape["dtype"] = str(size.dtype).removeprefix("torch.")

    def recorded(times: dict[str, list[float]]) -> Record:
        for row in rows:
            if row["name"] in times:
                row["seconds"] = summary(times[row["name"]])
        return record.new("tune", args.device, shape=shape, rows=rows)

    with progress("timing", repeat * len(jobs), "runs") as advance:
        times = interleaved(
            jobs, repeat, args.device, advance, lambda times: args.keep(recorded(times))
        )
    return recorded(times)


def variants(own: Any) -> Iterator[tuple[Any, int]]:
    """Tiles around the chosen one, and the group of blocks that run together."""
    from comal_kernels.engines.triton import tuning

    yield own, tuning.GROUP
    for group in (4, 16):
        yield own, group
    for stages in (own.stages - 1, own.stages + 1):
        yield replace(own, stages=stages), tuning.GROUP
    yield replace(own, persistent=not own.persistent), tuning.GROUP
    if own.warps > 4:
        yield replace(own, warps=own.warps // 2), tuning.GROUP
    yield replace(own, block_n=2 * own.block_n, block_v=own.block_v // 2), tuning.GROUP
    yield replace(own, block_v=own.block_v // 2), tuning.GROUP
    yield replace(own, block_v=own.block_v // 2, warps=4), tuning.GROUP
    yield replace(own, block_h=2 * own.block_h, stages=2), tuning.GROUP


def label(tile: Any, group: int) -> str:
    """A tile in a line."""
    text = f"{tile.block_n} × {tile.block_v} × {tile.block_h}, {tile.warps} warps"
    text += f", {tile.stages} stages, groups of {group}"
    return text + (", persistent" if tile.persistent else "")


@contextmanager
def using(arch: int, tile: Any, group: int) -> Iterator[None]:
    """Within the block every head is softened by this tile."""
    from comal_kernels.engines.triton import tuning

    known = tuning.nearest(arch)
    table = dict.fromkeys(tuning.SOFTEN[known], tile)
    with mock.patch.dict(tuning.SOFTEN, {known: table}), mock.patch.object(tuning, "GROUP", group):
        yield


def _problem(size: Any, tokens: int) -> tuple[Head, Tensor, Tensor]:
    generator = torch.Generator(size.device).manual_seed(0)
    given: dict[str, Any] = {"device": size.device, "generator": generator}
    x = torch.randn(tokens, size.hidden, **given).to(size.dtype)
    weight = torch.randn(size.vocab, size.hidden, **given) / size.hidden**0.5
    target = torch.randint(size.vocab, (tokens,), **given)
    return Head(weight.to(size.dtype)), x, target


def _log_sum_exp(head: Head, x: Tensor) -> Tensor:
    """(n,) float32, a few rows at a time."""
    parts = x.float().split(512)
    weight = head.weight.float()
    return torch.cat([torch.logsumexp(part @ weight.t(), 1) for part in parts])


def show(found: Record) -> None:
    """Print a row a tile, and whether another than the table's is faster."""
    shape = found["shape"]
    size = f"{shape['tokens']} × {shape['hidden']} × {shape['vocab']}"
    terminal.table(f"soften_kernel, {size}, {shape['dtype']}", tile_rows(found))
    timed = [r for r in found["rows"] if "seconds" in r and "block_n" in r]
    best = min(timed, key=lambda r: r["seconds"]["median"], default=None)
    if best and not best["chosen"]:
        terminal.note(f"faster than the table's tile (engines/triton/tuning.py): {best['name']}")


def markdown(found: Record, tokens: int) -> str:
    """The tiles as a section of a document."""
    return section(found, tile_rows(found))


def tile_rows(found: Record) -> Rows:
    """A row a tile, the fastest first; after them those that are wrong or do not compile."""
    timed = sorted(
        (r for r in found["rows"] if "seconds" in r), key=lambda r: r["seconds"]["median"]
    )
    product = next(r["seconds"]["median"] for r in timed if r["name"] == PRODUCT)
    rows = []
    for r in timed:
        low, middle, high = (1e3 * r["seconds"][q] for q in ("q25", "median", "q75"))
        mark = " (the table's)" if r.get("chosen") else ""
        rows.append(
            [f"{r['name']}{mark}", f"{middle:.3f} ({low:.3f} – {high:.3f})"]
            + [f"{r['seconds']['median'] / product:.2f}", ""]
        )
    rows += [[r["name"], "", "", r["error"]] for r in found["rows"] if "error" in r]
    return ["tile", "ms", "× cuBLAS", "why not"], rows


BENCH = Bench(
    verb="tune",
    help="the softening kernel's tiles, timed on this GPU",
    add_options=add_options,
    run=run,
    records=("tune",),
    show=show,
    markdown=markdown,
    in_all=(Call("cuda", 9),),
)
