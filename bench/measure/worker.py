"""A trainer in a process of its own: it owns its memory, and ends with it."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.pairs import Pairs
from bench.record import reason
from comal_fast.system.peak import peak_bytes, start_peak


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to begin."""

    model: str
    device: str
    dtype: str
    threads: int
    checkpointing: bool


class Failed(Exception):
    """A worker's error, in one line."""


@dataclass
class Worker:
    """The parent's end."""

    setting: Setting
    process: Any = field(init=False)
    pipe: Connection = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_main, args=(other, self.setting), daemon=True)
        self.process.start()
        other.close()

    def ask(self, *message: Any) -> Any:
        """Send, and wait for the answer. Raises Failed."""
        try:
            self.pipe.send(message)
            kind, answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            raise Failed("its process died (out of memory?)") from None
        if kind == "error":
            raise Failed(answer)
        return answer

    def end(self) -> None:
        """Free its memory: it leaves as soon as it finds the pipe closed."""
        self.pipe.close()
        self.process.join(timeout=30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Turn:
    """The trainer's end: measures each step between `wait` and `done`."""

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self.pipe, self.device = pipe, device

    def wait(self) -> None:
        self.pipe.recv()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start_peak(self.device)
        self.start = time.perf_counter()

    def done(self, loss: float, grad_norm: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.start
        measured = {"seconds": seconds, "peak": peak_bytes(self.device)}
        self.pipe.send(("step", {**measured, "loss": loss, "grad_norm": grad_norm}))


def _main(pipe: Connection, setting: Setting) -> None:
    """Load the model; answer ("logps", pairs), then ("train", name, pairs, micro_pairs)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from comal_fast.system.terminal import quiet_libraries

    quiet_libraries()
    try:
        torch.set_num_threads(setting.threads)
        from bench import models
        from bench.pairs import plain_logps
        from bench.trainers import TRAINERS
        from bench.trainers.base import Task

        device = torch.device(setting.device)
        model = models.load(setting.model, device, getattr(torch, setting.dtype))
        while True:
            verb, *rest = pipe.recv()
            if verb == "logps":
                pipe.send(("logps", plain_logps(model, rest[0])))
                continue
            name, pairs, micro_pairs = rest
            assert isinstance(pairs, Pairs)
            pipe.send(("ready", None))
            task = Task(model, pairs, micro_pairs, setting.checkpointing)
            TRAINERS[name](task, _Turn(pipe, device))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(("error", reason(error)))
