"""What the layers keep for the backward pass: all, only their input, or that in host memory.

A recomputed layer keeps its input alone and runs again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from comal_fast.errors import InputError


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, first to last. InputError for a model whose layers can't be run again."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"training.gradient_checkpointing: {type(model).__name__} has no layers that can be "
            "run again"
        )
    return layers


def spread(count: int, layers: int) -> list[int]:
    """`count` of 0 … layers − 1, evenly spread, the first among them."""
    return [i * layers // count for i in range(count)]


def recompute_layers(
    model: Any, count: int, run: Callable[..., Any] = checkpoint
) -> Callable[[], None]:
    """Checkpoint `count` of the layers through `run`; returns what undoes it.

    Everything that a layer is given, of whatever kind, passes through.
    """
    layers = layers_of(model) if count else []  # any model may keep everything
    chosen = [layers[i] for i in spread(count, len(layers))]
    for layer in chosen:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(run, use_reentrant=False)

    def undo() -> None:
        for layer in chosen:
            layer.gradient_checkpointing = False
            del layer._gradient_checkpointing_func

    return undo


@contextmanager
def activations(model: Any, count: int, offload: bool) -> Iterator[None]:
    """Within the block `count` layers are recomputed, their inputs in host memory on `offload`."""
    run = HostShelf(model.device).checkpoint if offload else checkpoint
    undo = recompute_layers(model, count, run)
    try:
        yield
    finally:
        undo()


class HostShelf:
    """Keeps tensors in pinned host memory between the passes, copied on a stream of its own.

    Going forward, a copy out runs beside the next layer's work; going backward, the layer before
    is fetched while this one is at work. On a device without streams the copies are plain ones.
    The host's buffers serve every pass: one a place on the shelf, as large as its largest tensor.
    """

    def __init__(self, device: torch.device) -> None:
        self.module = torch.get_device_module(device)
        self.device = device
        self.stream = self.module.Stream()
        self.shelf: list[_Kept] = []
        self.buffers: list[Tensor] = []  # (bytes,) uint8, by place

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """torch's `checkpoint`, called with what it saves on the shelf."""
        with saved_tensors_hooks(self._pack, self._unpack):
            return checkpoint(*args, **kwargs)

    def _beside(self) -> Any:
        self.stream.wait_stream(self.module.current_stream())
        return self.module.stream(self.stream)

    def _pack(self, tensor: Tensor) -> _Kept:
        for before in self.shelf[-1:]:  # its copy had a layer's time: its memory is free now
            before.release(self.module)
        kept = _Kept(tensor.detach(), len(self.shelf))
        with self._beside():
            kept.host = self._buffer(kept.place, tensor)
            kept.host.copy_(tensor.detach(), non_blocking=True)
            kept.done = self.module.Event()
            kept.done.record(self.stream)
        self.shelf.append(kept)
        return kept

    def _buffer(self, place: int, like: Tensor) -> Tensor:
        """Return host memory for such a tensor at a place, whose earlier copies are all queued."""
        size = like.numel() * like.itemsize
        if place == len(self.buffers):
            self.buffers.append(torch.empty(0, dtype=torch.uint8))
        if self.buffers[place].numel() < size:
            self.buffers[place] = torch.empty(
                size, dtype=torch.uint8, pin_memory=self.device.type == "cuda"
            )
        return self.buffers[place][:size].view(like.dtype).view(like.shape)

    def _fetch(self, kept: _Kept) -> None:
        if kept.here is None:
            kept.here = torch.empty(kept.host.shape, dtype=kept.host.dtype, device=self.device)
            with self._beside():
                kept.here.copy_(kept.host, non_blocking=True)
                kept.done = self.module.Event()
                kept.done.record(self.stream)

    def _unpack(self, kept: _Kept) -> Tensor:
        self._fetch(kept)
        self.module.current_stream().wait_event(kept.done)
        tensor, kept.here = kept.here, None
        assert tensor is not None
        del self.shelf[kept.place :]
        for before in self.shelf[-1:]:
            self._fetch(before)
        return tensor


class _Kept:
    """One tensor: on the device until its copy is out, in host memory, and fetched again."""

    host: Tensor
    done: Any

    def __init__(self, tensor: Tensor, place: int) -> None:
        self.here: Tensor | None = tensor
        self.place = place

    def release(self, module: Any) -> None:
        module.current_stream().wait_event(self.done)
        self.here = None
