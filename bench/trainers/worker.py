"""A process that trains: what it answers, and how its steps are measured."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch

from bench import models
from bench.measure.isolated import Parent
from bench.pairs import Pairs, plain_logps
from bench.record import reason
from bench.trainers import CONTESTANTS
from bench.trainers.base import Finished, Mode, Task
from comal_fast.system.peak import peak_bytes, start_peak

END = "end"  # what is asked instead of "step" where no step is wanted any more


@dataclass(frozen=True)
class Setting:
    """Everything a worker needs to begin."""

    model: str
    device: str
    dtype: str
    threads: int


def serve(parent: Parent, setting: Setting) -> None:
    """Answer messages in turn; the work of a `measure.isolated.Isolated`.

    ("logps", pairs): the pairs' log-probs. ("train", key, pairs, mode): None, then a row for each
    "step" and None for `END`. Where training fails the answer is {"why": one line}, the trainer has
    ended, and the next message may start another.
    """
    torch.set_num_threads(setting.threads)
    model = _Model(setting)
    while True:
        verb, *rest = parent.hear()
        if verb == "logps":
            parent.answer(plain_logps(model.take(Mode(1, liger=False)), *rest))
            continue
        key, pairs, mode = rest
        parent.answer(_train(parent, model, key, pairs, mode))


def _train(parent: Parent, model: _Model, key: str, pairs: Pairs, mode: Mode) -> Any:
    """Take steps as they are asked for; returns the last answer: None, or why it failed."""
    contestant = CONTESTANTS[key]
    try:
        task = Task(model.take(mode), pairs, mode)
        contestant.train(task, _MeasuredTurn(parent, model.device))
    except Finished:
        return None
    except Exception as error:  # out of memory, a package that is not there
        return {"why": reason(error)}
    finally:
        if contestant.spoils:
            model.forget()
        model.tidy()
    return {"why": "its steps ended"}


class _Model:
    """The model of a worker: made on first use, and again where it wants other kernels.

    In a process that has had Liger's kernels none comes without (`contest.Worker.prepare`).
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, torch.device(setting.device)
        self._made: Any = None
        self._kernels = (False, False)

    def take(self, mode: Mode) -> Any:
        """Return the model, its layers with the kernels that the mode has."""
        kernels = mode.liger, mode.fuse_residual
        if self._made is not None and self._kernels != kernels:
            self.forget()
        if self._made is None:
            dtype = getattr(torch, self.setting.dtype)
            self._made = models.load(self.setting.model, self.device, dtype, *kernels)
            self._kernels = kernels
        return self._made

    def forget(self) -> None:
        """Let go of the model; the next one is as the first was."""
        self._made = None
        self.tidy()

    def tidy(self) -> None:
        """Free what training left: gradients, and the memory that the allocator keeps."""
        if self._made is not None:
            self._made.zero_grad(set_to_none=True)
            self._made.eval()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class _MeasuredTurn:
    """Answers each message with what the step between `wait` and `done` took."""

    def __init__(self, parent: Parent, device: torch.device) -> None:
        self.parent, self.device = parent, device
        self.answer: Any = None  # that training has begun, then a row a step

    def wait(self) -> None:
        self.parent.answer(self.answer)
        if self.parent.hear() == (END,):
            raise Finished
        self._synchronize()
        start_peak(self.device)
        self.start = time.perf_counter()

    def done(self, loss: float, grad_norm: float) -> None:
        self._synchronize()
        seconds = time.perf_counter() - self.start
        measured = {"seconds": seconds, "peak": peak_bytes(self.device)}
        self.answer = {**measured, "loss": loss, "grad_norm": grad_norm}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
