"""What a machine can do: measured here, or its data sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """Rates that the cost model divides by; `source` says where they come from."""

    name: str
    flops: float  # FLOP/s of dense products in the training dtype
    bandwidth: float  # bytes/s of device memory
    memory: float  # bytes
    link: float  # bytes/s to each neighbour, one direction, inside a node
    network: float  # bytes/s of one device to other nodes, one direction
    gemm_share: float  # of `flops` that a large product reaches
    bandwidth_share: float  # of `bandwidth` that elementwise kernels reach
    source: str


SHEET = "data sheet; shares assumed"
MACHINES = {  # dense bfloat16, no sparsity
    "h100": Machine("H100 SXM", 989e12, 3.35e12, 80e9, 450e9, 50e9, 0.80, 0.90, SHEET),
    "h200": Machine("H200 SXM", 989e12, 4.8e12, 141e9, 450e9, 50e9, 0.80, 0.90, SHEET),
    "a100": Machine("A100 SXM 80 GB", 312e12, 2.04e12, 80e9, 300e9, 25e9, 0.85, 0.90, SHEET),
    "4090": Machine("RTX 4090", 165e12, 1.01e12, 24e9, 25e9, 3e9, 0.90, 0.90, SHEET),
}


def measure(device: torch.device, dtype: torch.dtype, memory: float) -> Machine:
    """This machine: the rate of a large product, and of a copy that no cache holds."""
    cuda = device.type == "cuda"
    n = 8192 if cuda else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * n**3 / _best(lambda: torch.mm(a, b), device)
    count = (GIB if cuda else GIB // 4) // 4
    source, target = (torch.ones(count, device=device) for _ in range(2))
    bandwidth = 2 * 4 * count / _best(lambda: target.copy_(source), device)
    return Machine(
        "this machine", flops, bandwidth, memory, 0.0, 0.0, 1.0, 1.0, "measured in the same run"
    )


def _best(job: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ten runs."""
    times = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
