"""A trainer in a process of its own: what it answers, and how its steps are measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bench import models
from bench.measure.isolated import Parent
from bench.pairs import plain_logps
from bench.trainers import TRAINERS
from bench.trainers.base import Task
from comal_fast.system.peak import peak_bytes, start_peak


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to begin."""

    model: str
    device: str
    dtype: str
    threads: int
    checkpointing: bool


def serve(parent: Parent, setting: Setting) -> None:
    """Answer ("logps", pairs); then ("train", name, pairs, micro_pairs), and a row for each step.

    The work of a `measure.isolated.Isolated`.
    """
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    model = models.load(setting.model, device, getattr(torch, setting.dtype))
    while True:
        verb, *rest = parent.hear()
        if verb == "logps":
            parent.answer(plain_logps(model, *rest))
            continue
        name, pairs, micro_pairs = rest
        parent.answer(None)
        task = Task(model, pairs, micro_pairs, setting.checkpointing)
        TRAINERS[name](task, _MeasuredTurn(parent, device))


class _MeasuredTurn:
    """Answers each message with what the step between `wait` and `done` took."""

    def __init__(self, parent: Parent, device: torch.device) -> None:
        self.parent, self.device = parent, device

    def wait(self) -> None:
        self.parent.hear()
        self._synchronize()
        start_peak(self.device)
        self.start = time.perf_counter()

    def done(self, loss: float, grad_norm: float) -> None:
        self._synchronize()
        seconds = time.perf_counter() - self.start
        measured = {"seconds": seconds, "peak": peak_bytes(self.device)}
        self.parent.answer({**measured, "loss": loss, "grad_norm": grad_norm})

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
