"""Times of jobs that take turns: medians and quartiles, caches cold on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Job = Callable[[], Any]
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
OCCUPIED = 4_000_000  # cycles, about 2 ms, that a GPU is kept busy before the clock starts


class Clock:
    """Seconds of one run: CUDA events around it on a GPU, with L2 flushed before.

    The GPU is busy when the run is asked for, as it is in training, so that what the host does
    before the first kernel takes no time unless it is longer, or waits for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush: torch.Tensor | None = None
        if device.type == "cuda":
            self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, job: Job) -> float:
        if self.flush is None:
            start = time.perf_counter()
            job()
            return time.perf_counter() - start
        self.flush.zero_()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(OCCUPIED)
        before.record()
        job()
        after.record()
        torch.cuda.synchronize(self.device)
        return before.elapsed_time(after) / 1e3


def interleaved(
    jobs: Mapping[str, Job],
    repeat: int,
    device: torch.device,
    advance: Callable[[], Any] = lambda: None,
    keep: Callable[[dict[str, list[float]]], Any] = lambda times: None,
) -> dict[str, list[float]]:
    """Seconds of each run; the jobs take turns, so that a slow minute hits all. Warm them first.

    `keep` is given the times so far after every round.
    """
    clock, times = Clock(device), {name: [] for name in jobs}  # type: tuple[Clock, dict[str, list[float]]]
    for _ in range(repeat):
        for name, job in jobs.items():
            times[name].append(clock(job))
            advance()
        keep(times)
    return times


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """The q25, median and q75 of some runs, and the single runs."""
    quartiles = torch.tensor(list(seconds), dtype=torch.float64)
    points = quartiles.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {**dict(zip(("q25", "median", "q75"), points, strict=True)), "runs": list(seconds)}
