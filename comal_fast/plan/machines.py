"""What a machine can do, and how long a step's parts take on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from comal_fast.plan.count import Part


@dataclass(frozen=True)
class Machine:
    """Rates that the cost model divides by; `source` says where they come from."""

    name: str
    flops: float  # FLOP/s of dense products in the training dtype
    bandwidth: float  # bytes/s of device memory
    memory: float  # bytes
    link: float  # bytes/s to each neighbour, one direction, inside a node
    network: float  # bytes/s of one device to other nodes, one direction
    products: float  # share of `flops` that the model's products reach
    elementwise: float  # share of `bandwidth` that elementwise operators reach
    optimizer: float  # share of `bandwidth` that AdamW reaches
    source: str
    host: float = 0.0  # bytes/s to host memory, one direction


SHEET = "data sheet; shares assumed"
# a step of one H200 took 1.28 s (2026-11-27); the products' share is what makes its parts add up
FITTED = "data sheet; the products' share fits one measured step"
PCIE4, PCIE5 = 26e9, 52e9  # of 32 and 64 GB/s: what large pinned copies reach, assumed
MACHINES = {  # dense bfloat16, no sparsity
    "h200": Machine(
        "H200 SXM", 989e12, 4.8e12, 141e9, 450e9, 50e9, 0.63, 0.90, 0.90, FITTED, PCIE5
    ),
    "h100": Machine(
        "H100 SXM", 989e12, 3.35e12, 80e9, 450e9, 50e9, 0.63, 0.90, 0.90, FITTED, PCIE5
    ),
    "a100": Machine(
        "A100 SXM 80 GB", 312e12, 2.04e12, 80e9, 300e9, 25e9, 0.85, 0.90, 0.90, SHEET, PCIE4
    ),
    "l40s": Machine("L40S", 362e12, 0.864e12, 48e9, 25e9, 25e9, 0.80, 0.90, 0.90, SHEET, PCIE4),
    "a100-40gb": Machine(
        "A100 SXM 40 GB", 312e12, 1.555e12, 40e9, 300e9, 25e9, 0.85, 0.90, 0.90, SHEET, PCIE4
    ),
    "4090": Machine("RTX 4090", 165e12, 1.01e12, 24e9, 25e9, 3e9, 0.90, 0.90, 0.90, SHEET, PCIE4),
}


def nearest(memory: float) -> str:
    """The name of the first machine whose memory is nearest to so many bytes."""
    return min(MACHINES, key=lambda name: (abs(MACHINES[name].memory - memory), name != "h100"))


def predict(machine: Machine, parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Seconds of each part, and what binds it: its products, or the bytes it moves."""
    rows = []
    for part in parts:
        rate, share = machine.flops * machine.products, machine.elementwise
        if part.name == "optimizer":
            share = machine.optimizer
        compute, move = part.flops / (rate * part.share), part.bytes / (machine.bandwidth * share)
        bound = "products" if compute >= move else "memory"
        rows.append(asdict(part) | {"seconds": max(compute, move), "bound": bound})
    return rows
