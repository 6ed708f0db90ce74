"""Between host and device: without a wait where there need be none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def to_host(x: Tensor) -> Ints:
    """x in int64 on the host; the one place that waits for the device, where x lives there."""
    return x.detach().cpu().numpy().astype(np.int64, copy=False)


def to_device(x: NDArray | Tensor, device: torch.device) -> Tensor:
    """x on `device`. A GPU copies it when it comes to that; the host goes on at once."""
    host = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
    if device.type == "cuda" and host.device.type == "cpu":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


def to_devices(arrays: Sequence[NDArray | Tensor], device: torch.device) -> list[Tensor]:
    """As `to_device`, of one dtype and dimension, in one copy: each costs the host its time."""
    whole = torch.cat([x if isinstance(x, Tensor) else torch.from_numpy(x) for x in arrays])
    return list(to_device(whole, device).split([len(x) for x in arrays]))


def begin_reading(values: Mapping[str, Tensor]) -> Callable[[], dict[str, float]]:
    """Start bringing numbers, () each, to the host; what is returned gives them.

    It may be called once the host has waited for something that the device was given later.
    """
    distant = {name: x.detach().double() for name, x in values.items() if x.is_cuda}
    if not distant:
        return lambda: {name: float(x) for name, x in values.items()}
    together = torch.stack(list(distant.values()))
    host = torch.empty(len(distant), dtype=torch.float64, pin_memory=True)
    host.copy_(together, non_blocking=True)

    def read() -> dict[str, float]:
        here = dict(zip(distant, host.tolist(), strict=True))
        return {name: here[name] if name in here else float(x) for name, x in values.items()}

    return read
