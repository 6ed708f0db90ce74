"""The head: log-probs and a prox loss from hidden states, against peers and the GEMM floor.

A contender is timed only if its loss and gradients agree with float64 about as well as plain torch
in the same dtype does. Runs are interleaved; medians and quartiles are reported.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.peers import Contender, ours, peers, plain
from bench.problem import RESPONSE, Problem, make_problem

OURS = "comal_kernels"
PACKAGES = ("torch", "triton", "transformers", "trl")


def solve(contender: Contender, p: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dhidden, dweight."""
    leaves = p.leaves(dtype)
    loss = contender(p, leaves)
    dhidden, dweight = torch.autograd.grad(loss, leaves)
    return loss.detach(), dhidden, dweight


def value(contender: Contender, p: Problem, dtype: torch.dtype) -> Tensor:
    """The loss alone, under no_grad."""
    with torch.no_grad():
        return contender(p, p.leaves(dtype))


def errors(contender: Contender, p: Problem, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors (2-norm) against float64."""
    exact, result = solve(plain, p, torch.float64), solve(contender, p, dtype)
    pairs = zip(("loss", "dhidden", "dweight"), result, exact, strict=True)
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in pairs}


def check(contender: Contender, p: Problem, dtype: torch.dtype) -> dict[str, float]:
    """`errors`. Raises ValueError where they are beyond twice plain torch's."""
    mine, allowed = errors(contender, p, dtype), errors(plain, p, dtype)
    for name, error in mine.items():
        if not error <= 2 * allowed[name] + 1e-6:
            raise ValueError(f"wrong result, not timed: {name} is off by {error:.1e}")
    return mine


def interleaved(
    jobs: dict[str, Callable[[], Any]], repeat: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run, jobs taking turns after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeat + 1):
        for name, job in jobs.items():
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def register(benches: Any) -> None:
    """Add `head`."""
    parser = benches.add_parser("head", help="prox loss from hidden states, forward and backward")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192] if cuda else [1024])
    parser.add_argument("--hidden", type=int, default=4096 if cuda else 576)
    parser.add_argument("--vocab", type=int, default=128256 if cuda else 49152)
    parser.add_argument("--repeat", type=int, default=20 if cuda else 5)
    parser.add_argument("--forward-only", action="store_true", help="log-probs, no gradients")
    parser.add_argument("--no-plain", action="store_true", help="leave out full logits")
    parser.add_argument("--grad-filter", type=float, help="time this filter too (inexact)")
    parser.add_argument("--json", type=Path, help="where to write the records")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, time, print; write the records where asked."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype: {args.dtype} is no torch dtype")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: no such folder")
    small = make_problem(4 * RESPONSE, args.hidden, min(args.vocab, 32000), dtype, device)
    right: dict[str, Contender] = {}
    checked: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    for name, contender in [(OURS, ours), *peers(args.vocab)]:
        if isinstance(contender, str):
            refused[name] = contender
            continue
        try:
            checked[name], right[name] = check(contender, small, dtype), contender
        except Exception as error:  # a peer that fails is a row that says why
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if args.grad_filter:
        filtered = functools.partial(ours, grad_filter=args.grad_filter)
        name = f"{OURS}, grad_filter={args.grad_filter:g}"
        checked[name], right[name] = errors(filtered, small, dtype), filtered
    if args.no_plain:
        right.pop("plain torch, full logits", None)
    records = []
    for tokens in args.tokens:
        problem = make_problem(tokens, args.hidden, args.vocab, dtype, device)
        record = _measure(problem, right, dtype, device, args)
        records.append(record | {"relative_error": checked, "not_timed": refused})
    _print(records, args)
    if args.json:
        args.json.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n")
    return 0


def _measure(
    p: Problem,
    contenders: dict[str, Contender],
    dtype: torch.dtype,
    device: torch.device,
    args: argparse.Namespace,
) -> dict[str, Any]:
    logits = torch.empty(len(p.target), args.vocab, dtype=dtype, device=device)

    def floor() -> None:
        torch.mm(p.hidden, p.weight.t(), out=logits)
        if args.forward_only:
            return
        torch.mm(logits, p.weight)
        torch.mm(logits.t(), p.hidden)

    least = f"floor: {1 if args.forward_only else 3} × cuBLAS or MKL product"
    jobs: dict[str, Callable[[], Any]] = {least: floor}
    job = value if args.forward_only else solve
    for name, contender in contenders.items():
        jobs[name] = functools.partial(job, contender, p, dtype)
    times = interleaved(jobs, args.repeat, device)
    rows = {}
    for name, seconds in times.items():
        quartiles = torch.tensor(seconds).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        rows[name] = dict(zip(("q25", "median", "q75"), quartiles, strict=True))
    base = rows[least]["median"]
    for row in rows.values():
        row["ratio_to_floor"] = row["median"] / base
    cuda = device.type == "cuda"
    return {
        "bench": "head forward" if args.forward_only else "head",
        "tokens": len(p.target),
        "hidden": args.hidden,
        "vocab": args.vocab,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in PACKAGES},
        "seconds": rows,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    what = "forward" if args.forward_only else "forward + backward"
    title = f"DPO from hidden states, {what}, {args.dtype}, {records[0]['device']}"
    table = Table(title=title)
    for column in ("tokens", "contender", "ms (q25 – q75)", "ratio to floor"):
        table.add_column(column)
    for record in records:
        for name, row in record["seconds"].items():
            spread = f"{row['median'] * 1e3:.1f} ({row['q25'] * 1e3:.1f} – {row['q75'] * 1e3:.1f})"
            table.add_row(str(record["tokens"]), name, spread, f"{row['ratio_to_floor']:.2f}")
    for name, why in records[0]["not_timed"].items():
        table.add_row("", name, why, "")
    Console(highlight=False).print(table)
