"""The head: log-probs and a prox loss from hidden states, against peers and the GEMM floor."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.contender import FLOOR, Contender, Missing
from bench.measure.honesty import CHECK_TOKENS, Judge, solve, value
from bench.measure.timing import Clock, Job, interleaved, summary
from bench.peers import chosen, contenders, ours
from bench.problem import DATA, Problem
from bench.record import Record, Row, reason
from bench.render import plots, terminal
from bench.render.formats import Rows, full_name, shape_text, spread
from bench.render.markdown import section
from comal_fast.errors import InputError
from comal_fast.system.allocator import keep_freed_memory
from comal_fast.system.terminal import progress

HEAD, FORWARD = "head", "head-forward"  # its records


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `head`."""
    options.add(parser, "device", "dtype", "tokens", "hidden", "vocab", "repeat", "peers")
    parser.add_argument("--data", choices=tuple(DATA), default="random", help="states and head")
    parser.add_argument("--forward-only", action="store_true", help="no gradients")


def run(args: argparse.Namespace) -> Record:
    """The contenders whose results are right, with their times; and why others have none."""
    size = options.size(args)
    if not size.cuda:
        keep_freed_memory()  # as training does; for every contender, and it is faster for each
    candidates = contenders(chosen(args.peers), size)
    right, rows = checked(candidates, size.problem(CHECK_TOKENS, args.data), size.dtype)
    repeat = options.default(args, "repeat", 3, 20)

    def recorded(rows: list[Row]) -> Record:
        return record.new(
            FORWARD if args.forward_only else HEAD,
            size.device,
            shape=size.text(),
            data=args.data,
            checked_on={"tokens": CHECK_TOKENS},
            rows=rows,
        )

    def keep(found: list[Row]) -> None:
        args.keep(recorded(rows + found))

    for tokens in options.default(args, "tokens", [1024], [2048, 8192]):
        p = size.problem(tokens, args.data)
        rows += measure(p, right, size.dtype, repeat, args.forward_only, keep)
    return recorded(rows)


def checked(
    candidates: list[Contender | Missing], p: Problem, dtype: torch.dtype
) -> tuple[list[tuple[Contender, Row]], list[Row]]:
    """The contenders whose results are right, with what their rows say; rows of all others."""
    judge, right, refused = Judge(p, dtype), [], []
    with progress("checking against float64", len(candidates), "contenders") as advance:
        for candidate in candidates:
            if isinstance(candidate, Missing):
                refused.append({"name": candidate.name, "why": candidate.why})
                advance()
                continue
            row: Row = candidate.text()
            try:
                verdict = judge(candidate)
                row["errors"], why = verdict.errors, verdict.wrong
            except Exception as error:  # a peer that fails is a row that says why
                why = reason(error)
            if why:
                refused.append({**row, "why": why})
            else:
                right.append((candidate, row))
            advance()
    return right, refused


def measure(
    p: Problem,
    right: list[tuple[Contender, Row]],
    dtype: torch.dtype,
    repeat: int,
    forward_only: bool = False,
    keep: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Return the rows of one problem: the floor, and of each contender its fastest variant.

    `keep` is given what they are so far after every round of runs.
    """
    device, tokens = p.hidden.device, len(p.target)
    job = value if forward_only else solve
    passes = 1 if forward_only else 3
    entries: list[tuple[Row, Job]] = [
        ({"name": FLOOR, "variant": layout, "exact": True, "bounded": False}, floor)
        for layout, floor in floors(p, passes).items()
    ]
    entries += [(row, functools.partial(job, contender, p, dtype)) for contender, row in right]
    kept, failed = warm(entries, device)
    flops = 2 * passes * tokens * p.hidden.shape[1] * p.weight.shape[0]

    def timed(times: dict[str, list[float]]) -> list[Row]:
        rows = [
            {**row, "tokens": tokens, "seconds": summary(times[str(i)])}
            for i, (row, _) in enumerate(kept)
        ]
        base = next(row for row in rows if row["name"] == FLOOR)["seconds"]["median"]
        for row in rows:
            row["ratio_to_floor"] = row["seconds"]["median"] / base
            row["flops_per_second"] = flops / row["seconds"]["median"]  # useful ones
        return rows

    with progress(f"timing, {tokens} tokens", repeat * len(kept), "runs") as advance:
        times = interleaved(
            {str(i): run for i, (_, run) in enumerate(kept)},
            repeat,
            device,
            advance,
            lambda times: keep(timed(times)),
        )
    rows = timed(times)
    return rows + [{**row, "tokens": tokens} for row in failed]


def floors(p: Problem, passes: int) -> dict[str, Callable[[], None]]:
    """The plain products that none can do without, a job for each layout of the logits."""
    tokens, vocab = len(p.target), p.weight.shape[0]
    buffer = torch.empty(tokens * vocab, dtype=p.hidden.dtype, device=p.hidden.device)
    rows, columns = buffer.view(tokens, vocab), buffer.view(vocab, tokens)

    def by_rows() -> None:
        torch.mm(p.hidden, p.weight.t(), out=rows)
        if passes == 3:
            torch.mm(rows, p.weight)
            torch.mm(rows.t(), p.hidden)

    def by_columns() -> None:
        torch.mm(p.weight, p.hidden.t(), out=columns)
        if passes == 3:
            torch.mm(columns.t(), p.weight)
            torch.mm(columns, p.hidden)

    return {"logits (T, V)": by_rows, "logits (V, T)": by_columns}


def warm(
    entries: list[tuple[Row, Job]], device: torch.device
) -> tuple[list[tuple[Row, Job]], list[Row]]:
    """The fastest variant of each name, after one run (two on a GPU: the first compiles); failures.

    The other variants' times go into the row as `variants`; failures are rows that say why.
    """
    clock, failed = Clock(device), []
    best: dict[str, tuple[float, Row, Job]] = {}
    variants: dict[str, dict[str, float]] = {}
    with progress("warming up", len(entries), "contenders") as advance:
        for row, job in entries:
            advance()
            try:
                seconds = [clock(job) for _ in range(2 if device.type == "cuda" else 1)][-1]
            except Exception as error:  # out of memory, a kernel that does not build
                failed.append({**row, "why": reason(error)})
                continue
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            name = row["name"]
            variants.setdefault(name, {})[row["variant"]] = seconds
            if name not in best or seconds < best[name][0]:
                best[name] = seconds, row, job
    kept = []
    for name, (_, row, job) in best.items():
        tried = {"variants": variants[name]} if len(variants[name]) > 1 else {}
        kept.append(({**row, **tried}, job))
    return kept, [row for row in failed if row["name"] not in best]


def show(found: Record) -> None:
    """Print the contenders, fastest first, one table a number of tokens."""
    for tokens in _sizes(found):
        title = f"DPO from hidden states: {tokens} tokens, {shape_text(found)}"
        terminal.table(title, head_rows(found, tokens))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """The contenders as a section of a document, at that number of tokens or at each."""
    sizes = _sizes(found)
    if tokens and tokens not in sizes:
        raise InputError(f"the newest head record has {sizes} tokens, not {tokens}")
    parts: list[str | Rows] = []
    for n in [tokens] if tokens else sizes:
        what = "forward" if found["bench"] == FORWARD else "forward and backward"
        parts.append(f"{n} tokens × {shape_text(found)}, {found['data']} data, {what}:")
        parts.append(head_rows(found, n))
    return section(found, *parts)


def _sizes(found: Record) -> list[int]:
    """The numbers of tokens in a record."""
    return list(dict.fromkeys(r["tokens"] for r in found["rows"] if "tokens" in r))


def head_rows(found: Record, tokens: int) -> Rows:
    """A row a contender, fastest first."""
    timed = [r for r in found["rows"] if r.get("tokens") == tokens and "seconds" in r]
    timed.sort(key=lambda r: r["seconds"]["median"])
    unit = "s" if timed[-1]["seconds"]["median"] > 1 else "ms"
    rows = [
        [
            full_name(r),
            spread(r["seconds"], unit),
            f"{r['ratio_to_floor']:.2f}",
            f"{max(r['errors'].values()):.0e}" if "errors" in r else "",
        ]
        for r in timed
    ]
    return ["contender", f"{unit}, median (quartiles)", "× floor", "largest error"], rows


def draw(found: Record) -> bytes:
    """A picture: a bar a contender, a panel a number of tokens."""
    shape, device = found["shape"], found["device"]
    kind = "forward" if found["bench"] == FORWARD else "forward + backward"

    def title(tokens: int) -> str:
        sizes = f"{tokens} × {shape['hidden']} × {shape['vocab']}"
        return f"DPO from hidden states, {kind}: {sizes}, {shape['dtype']}, {device['name']}"

    return plots.bars(found["rows"], title)


def failed(found: Record) -> bool:
    """Whether ours gave a wrong result, or none."""
    return any(r["name"].startswith(ours.NAME) and r.get("why") for r in found["rows"])


BENCH = Bench(
    verb="head",
    help="prox loss from hidden states, forward and backward",
    add_options=add_options,
    run=run,
    records=(HEAD, FORWARD),
    show=show,
    markdown=markdown,
    draw=draw,
    failed=failed,
    in_all=(
        Call("cpu", 1, "--tokens 1024"),
        Call("cuda", 1, "--tokens 8192"),
        Call("cuda", 3, "--tokens 8192 --forward-only"),
    ),
)
