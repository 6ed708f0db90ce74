"""The head: log-probs and a prox loss from hidden states, against full logits and the GEMM floor.

A contender is timed only if its loss and gradients agree with float64 about as well as plain torch
in the same dtype does. Runs are interleaved; medians and quartiles are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor

from comal_kernels import prox_loss

RESPONSE = 64  # tokens of a response
Result = tuple[Tensor, Tensor, Tensor]  # loss, dhidden, dweight


@dataclass(frozen=True)
class Problem:
    """INPO over packed pairs with cached reference and last-iterate log-probs."""

    hidden: Tensor  # (T, H)
    weight: Tensor  # (V, H)
    target: Tensor  # (T,) int64
    cu_seqlens: Tensor  # (S + 1,) int32
    ref_logp: Tensor  # (S,)
    last_logp: Tensor  # (S,)
    eta: float = 0.05
    ratio: float = 1 / 3

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Fresh leaves of hidden and weight."""
        return tuple(x.detach().to(dtype).requires_grad_() for x in (self.hidden, self.weight))  # type: ignore[return-value]


def make_problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """Seeded random tensors at the scale of a trained model's: logits of standard deviation ~2."""
    generator = torch.Generator().manual_seed(0)
    count = tokens // RESPONSE // 2 * 2
    if count < 2 or tokens != count * RESPONSE:
        raise ValueError(f"--tokens: {tokens} is not a positive multiple of {2 * RESPONSE}")
    states = torch.randn(tokens, hidden, generator=generator)
    weight = torch.randn(vocab, hidden, generator=generator) * 2 / hidden**0.5
    target = torch.randint(0, vocab, (tokens,), generator=generator)
    cached = torch.randn(2, count, generator=generator) * 3 - 12.0 * RESPONSE
    return Problem(
        states.to(device, dtype),
        weight.to(device, dtype),
        target.to(device),
        torch.arange(0, tokens + 1, RESPONSE, dtype=torch.int32),
        *cached.to(device),
    )


def ours(p: Problem, leaves: tuple[Tensor, Tensor], workspace: int | None = None) -> Tensor:
    """comal_kernels.prox_loss."""
    count = len(p.cu_seqlens) - 1
    return prox_loss(
        *leaves,
        target=p.target,
        cu_seqlens=p.cu_seqlens,
        loss="inpo",
        chosen=torch.arange(0, count, 2),
        rejected=torch.arange(1, count, 2),
        ref_logp=p.ref_logp,
        last_logp=p.last_logp,
        eta=p.eta,
        tau_eta_ratio=p.ratio,
        workspace=workspace,
    ).loss


def plain(p: Problem, leaves: tuple[Tensor, Tensor]) -> Tensor:
    """Full float32 logits and autograd (float64 logits for float64 leaves)."""
    hidden, weight = leaves
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = -torch.nn.functional.cross_entropy(logits, p.target, reduction="none")
    sums = logp.view(-1, RESPONSE).sum(1)
    z = sums - p.ratio * p.ref_logp - (1 - p.ratio) * p.last_logp
    return (z[::2] - z[1::2] - 0.5 / p.eta).square().mean()


def solve(contender: Callable[..., Tensor], p: Problem, dtype: torch.dtype) -> Result:
    """Loss and both gradients."""
    leaves = p.leaves(dtype)
    loss = contender(p, leaves)
    dhidden, dweight = torch.autograd.grad(loss, leaves)
    return loss.detach(), dhidden, dweight


def check(p: Problem, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of `ours` against float64. ValueError if beyond twice plain torch's."""
    exact = solve(plain, p, torch.float64)
    errors = {}
    for name, contender in (("plain", plain), ("ours", ours)):
        result = solve(contender, p, dtype)
        pairs = zip(result, exact, strict=True)
        errors[name] = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    parts = ("loss", "dhidden", "dweight")
    for part, theirs, mine in zip(parts, errors["plain"], errors["ours"], strict=True):
        if not mine <= 2 * theirs + 1e-6:
            raise ValueError(f"wrong result, not timed: {part} is off by {mine:.1e}")
    return dict(zip(parts, errors["ours"], strict=True))


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
    parser.add_argument("--no-plain", action="store_true", help="leave out full logits")
    parser.add_argument("--json", type=Path, help="where to write the records")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, time, print; write the records where asked."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype: {args.dtype} is no torch dtype")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: no such folder")
    records = []
    small = make_problem(2 * RESPONSE, args.hidden, min(args.vocab, 32000), dtype, device)
    errors = check(small, dtype)
    for tokens in args.tokens:
        problem = make_problem(tokens, args.hidden, args.vocab, dtype, device)
        records.append(_measure(problem, dtype, device, args) | {"relative_error": errors})
    _print(records, args)
    if args.json:
        args.json.write_text(json.dumps(records, indent=2) + "\n")
    return 0


def _measure(
    p: Problem, dtype: torch.dtype, device: torch.device, args: argparse.Namespace
) -> dict[str, Any]:
    logits = torch.empty(len(p.target), args.vocab, dtype=dtype, device=device)

    def floor() -> None:
        torch.mm(p.hidden, p.weight.t(), out=logits)
        torch.mm(logits, p.weight)
        torch.mm(logits.t(), p.hidden)

    jobs: dict[str, Callable[[], Any]] = {
        "floor: 3 GEMMs": floor,
        "comal_kernels": lambda: solve(ours, p, dtype),
    }
    if not args.no_plain:
        jobs["plain torch, full logits"] = lambda: solve(plain, p, dtype)
    times = interleaved(jobs, args.repeat, device)
    rows = {}
    for name, seconds in times.items():
        quartiles = torch.tensor(seconds).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        rows[name] = dict(zip(("q25", "median", "q75"), quartiles, strict=True))
    base = rows["floor: 3 GEMMs"]["median"]
    for row in rows.values():
        row["ratio_to_floor"] = row["median"] / base
    cuda = device.type == "cuda"
    return {
        "bench": "head",
        "tokens": len(p.target),
        "hidden": args.hidden,
        "vocab": args.vocab,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "seconds": rows,
    }


def _print(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    table = Table(title=f"prox loss, forward + backward, {args.dtype}, {records[0]['device']}")
    for column in ("tokens", "contender", "ms (q25 – q75)", "ratio to floor"):
        table.add_column(column)
    for record in records:
        for name, row in record["seconds"].items():
            spread = f"{row['median'] * 1e3:.1f} ({row['q25'] * 1e3:.1f} – {row['q75'] * 1e3:.1f})"
            table.add_row(str(record["tokens"]), name, spread, f"{row['ratio_to_floor']:.2f}")
    Console(highlight=False).print(table)
