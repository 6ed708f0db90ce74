"""Optimizer state in host memory, lent to the device a slice at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SLOTS = 3  # slices on the device at once: one comes, one is worked on, one goes
ALIVE = 2  # gradients that may wait for their update before the backward pass waits for it


class Lane:
    """A stream of a CUDA device. On the CPU, where work is done when asked for, nothing."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream

    @classmethod
    def side(cls, device: torch.device) -> Lane:
        """The lane of a new stream."""
        return cls(torch.cuda.Stream(device) if device.type == "cuda" else None)

    @classmethod
    def current(cls, device: torch.device) -> Lane:
        """The lane of the stream that work goes to now."""
        return cls(torch.cuda.current_stream(device) if device.type == "cuda" else None)

    def __call__(self) -> Any:
        """A context in which work goes to this lane."""
        return torch.cuda.stream(self.stream) if self.stream is not None else nullcontext()

    def mark(self) -> Any:
        """What `wait` waits for: all work of this lane so far."""
        return self.stream.record_event() if self.stream is not None else None

    def wait(self, mark: Any) -> None:
        """Let this lane's work from now on start after the mark."""
        if self.stream is not None and mark is not None:
            self.stream.wait_event(mark)

    def synchronize(self) -> None:
        """Return once all work of this lane is done."""
        if self.stream is not None:
            self.stream.synchronize()


@dataclass
class _Slot:
    """Device memory for one slice's state, and the mark after which it may be written again."""

    buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)
    free: Any = None

    def view(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        key = name, like.dtype
        if key not in self.buffers or self.buffers[key].numel() < like.numel():
            self.buffers[key] = torch.empty_like(like, device=device)
        return self.buffers[key][: like.numel()]


class HostState:
    """Host memory for optimizer state, and its way to the device and back.

    Copies in go on one lane; updates and copies back on another, beside the backward pass.
    The device's own kernel makes the update, so weights are those of state kept on the device.
    The host waits for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies, self.updates = Lane.side(device), Lane.side(device)
        self.slots = deque(_Slot() for _ in range(SLOTS))
        self.waiting: deque[tuple[Any, Tensor]] = deque()

    def empty(self, like: Tensor) -> Tensor:
        """Host memory for such a tensor, pinned where a device copies from it.

        Of a sharded one each rank has its own part, sharded likewise.
        """
        pinned = self.device.type == "cuda"
        return torch.empty_like(like, device="cpu", pin_memory=pinned)

    @contextmanager
    def updating(self, gradient: Tensor) -> Iterator[None]:
        """Within the block, work goes to the update lane, after all that made `gradient`.

        The gradient's memory is not free before the current stream has waited for that work.
        """
        current = Lane.current(self.device)
        self.updates.wait(current.mark())
        with self.updates():
            yield
        self.waiting.append((self.updates.mark(), gradient))
        while len(self.waiting) > ALIVE:
            current.wait(self.waiting[0][0])
            self.waiting.popleft()

    @contextmanager
    def lent(self, state: Mapping[str, Tensor], back: bool = True) -> Iterator[dict[str, Tensor]]:
        """Yield a slice of (1-dimensional) host tensors on the device; copied back at the end."""
        slot = self.slots[0]
        self.slots.rotate(-1)
        with self.copies():
            self.copies.wait(slot.free)
            lent = {name: slot.view(name, x, self.device) for name, x in state.items()}
            for name, x in state.items():
                lent[name].copy_(x, non_blocking=True)
        self.updates.wait(self.copies.mark())
        yield lent
        if back:
            for name, x in state.items():
                x.copy_(lent[name], non_blocking=True)
        slot.free = self.updates.mark()

    def finish(self) -> None:
        """Let the current stream, and the copies that follow, come after all updates."""
        end = self.updates.mark()
        Lane.current(self.device).wait(end)
        self.copies.wait(end)
        self.waiting.clear()

    def synchronize(self) -> None:
        """Return once host memory holds what the last update wrote."""
        self.updates.synchronize()
