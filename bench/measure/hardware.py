"""What this machine can do, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from comal_fast.plan.machines import Machine

GIB = 1 << 30
ADAMW_WEIGHTS = 1 << 25  # more than any cache holds


def measure(
    device: torch.device,
    dtype: torch.dtype,
    memory: float,
    like: tuple[int, int, int] | None = None,
    small: bool = False,
) -> Machine:
    """This machine: the best rate of products, and that of a copy that no cache holds.

    like: a model's sizes: the shares are measured at them; without, they are 1.
    small: in sizes that take no time and say nothing, to try a bench out.
    """
    cuda = device.type == "cuda" and not small
    n = 8192 if cuda else 128 if small else 1536
    flops = _product_rate(n, n, n, device, dtype)
    bandwidth = _copy_rate((GIB if cuda else GIB // 4) // 4, device)
    shares = 1.0, 1.0, 1.0
    if like is not None:
        tokens, hidden, inner = like
        products = _product_rate(tokens, hidden, inner, device, dtype)
        flops = max(flops, products)
        rates = (
            _elementwise_rate(tokens, inner, device, dtype),
            _adamw_rate(ADAMW_WEIGHTS, device, dtype),
        )
        shares = products / flops, rates[0] / bandwidth, rates[1] / bandwidth
    return Machine(
        "this machine", flops, bandwidth, memory, 0.0, 0.0, *shares, "measured in the same run"
    )


def _copy_rate(count: int, device: torch.device) -> float:  # bytes/s, read and written
    source, target = (torch.ones(count, device=device) for _ in range(2))
    return 2 * 4 * count / _best(lambda: target.copy_(source), device)


def _product_rate(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of (m, k) · (k, n)."""
    a = torch.randn(m, k, device=device, dtype=dtype)
    b = torch.randn(k, n, device=device, dtype=dtype)
    return 2 * m * k * n / _best(lambda: torch.mm(a, b), device)


def _elementwise_rate(
    rows: int, width: int, device: torch.device, dtype: torch.dtype
) -> float:  # bytes/s
    """Rate of silu(a) · b, forward and backward, each result in fresh memory, as in a model."""
    a, b = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    a.requires_grad_()
    b.requires_grad_()

    def job() -> None:
        (torch.nn.functional.silu(a) * b).backward(a.detach())
        a.grad = b.grad = None

    moved = 5 + 3 + 3 + 3  # silu, product; the gradients of both factors and of silu
    return moved * a.numel() * a.itemsize / _best(job, device)


def _adamw_rate(count: int, device: torch.device, dtype: torch.dtype) -> float:  # bytes/s
    weight = torch.nn.Parameter(torch.randn(count, device=device, dtype=dtype))
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-6, fused=True)
    return 7 * count * weight.itemsize / _best(optimizer.step, device)


def _best(job: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of six runs."""
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
