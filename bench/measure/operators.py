"""What a profiler's events say: seconds by kind of work, operators with their rates.

The share of a step that is ours outside products and attention: what runs inside comal_kernels'
ops other than matrix products, plus all time in which no operator runs (Python: ours, autograd's
and the model's alike). The model's own norms, rotary embeddings and activations, and the optimizer,
are counted as what they are.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.record import Row

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "_addmm_activation", "linear"}
OPTIMIZER = ("adam", "linalg_vector_norm", "_foreach_")
ATTENTION = ("attention", "attn")  # of torch, flash-attn and flex_attention alike
OWN = "comal_kernels::"
SHOWN = 20  # rows of the table
KERNELS = 60  # of a GPU, the longest


def _ancestors(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def _base(event: Any) -> str:
    return event.name.removeprefix("aten::")


def _own_time(event: Any, device: torch.device) -> float:
    """Seconds in the event itself, not in those it calls."""
    micro = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return micro / 1e6


def breakdown(events: list[Any], wall: float, device: torch.device) -> dict[str, float]:
    """Seconds by kind; they add up to `wall` on a CPU."""
    kinds = dict.fromkeys(
        ("products of the model", "products of the head", "attention",
         "the model's elementwise operators", "optimizer", "ours: around the head's products",
         "ours: no operator runs"), 0.0,
    )  # fmt: skip
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: counted with the operator that launched it
        seconds = _own_time(event, device)
        above = _ancestors(event)
        inside = any(OWN in name for name in (event.name, *above))
        if _base(event) in PRODUCTS:
            kinds["products of the head" if inside else "products of the model"] += seconds
        elif inside:
            kinds["ours: around the head's products"] += seconds
        elif any(mark in name for mark in ATTENTION for name in (event.name, *above)):
            kinds["attention"] += seconds
        elif any(mark in name.lower() for mark in OPTIMIZER for name in (event.name, *above)):
            kinds["optimizer"] += seconds
        else:
            kinds["the model's elementwise operators"] += seconds
    kinds["ours: no operator runs"] = max(0.0, wall - sum(kinds.values()))
    return kinds


def operators(events: list[Any], itemsize: int, device: torch.device) -> list[Row]:
    """A row an operator and its shapes, longest first: calls, seconds, bytes, achieved rates."""
    groups: dict[tuple[str, str], Row] = {}
    for event in events:
        seconds = _own_time(event, device)
        if event.device_type != torch.autograd.DeviceType.CPU or seconds <= 0:
            continue
        shapes = [s for s in event.input_shapes or [] if s and all(isinstance(n, int) for n in s)]
        key = (event.name, str(shapes))
        group = groups.setdefault(
            key, {"name": event.name, "shapes": shapes, "calls": 0, "seconds": 0.0, "flops": 0.0}
        )
        group["calls"] += 1
        group["seconds"] += seconds
        group["flops"] += event.flops or 0
    rows = sorted(groups.values(), key=lambda g: -g["seconds"])[:SHOWN]
    for row in rows:
        row["bytes"] = row["calls"] * itemsize * least_elements(row["name"], row["shapes"])
        row["bytes_per_second"] = row["bytes"] / row["seconds"]
        row["flops_per_second"] = row["flops"] / row["seconds"]
    return rows


def least_elements(name: str, shapes: list[list[int]]) -> int:
    """Elements that an operator must read and write: its inputs and one result."""
    sizes = [int(torch.Size(s).numel()) for s in shapes]
    if not sizes:
        return 0
    base = name.removeprefix("aten::")
    if base in PRODUCTS and len(shapes) >= 2:
        added = 1 if base in ("addmm", "addmm_", "baddbmm", "_addmm_activation") else 0
        a, b = shapes[added : added + 2]  # what may follow is the result's own place
        result = (a[0] if len(a) == 3 else 1) * a[-2] * b[-1]
        return sum(sizes[: added + 2]) + result
    return sum(sizes) + max(sizes)


def kernels(events: list[Any]) -> list[Row]:
    """Return a row a kernel of the GPU, the longest first: its name, calls and seconds."""
    groups: dict[str, Row] = {}
    for event in _on_device(events):
        group = groups.setdefault(event.name, {"name": event.name, "calls": 0, "seconds": 0.0})
        group["calls"] += 1
        group["seconds"] += (event.time_range.end - event.time_range.start) / 1e6
    return sorted(groups.values(), key=lambda g: -g["seconds"])[:KERNELS]


def busy_seconds(events: list[Any]) -> float:
    """Return for how long at least one kernel or copy ran on the GPU."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in _on_device(events))
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def _on_device(events: list[Any]) -> list[Any]:
    return [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
