"""Contestants measured: each of their modes is tried, and the fastest one is timed.

On a CPU, where memory suffices, each has a process and they take turns, so that a slow minute of
the machine hits all. On a GPU they run one after another, those of a family in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from bench.measure.isolated import Failed, Isolated
from bench.measure.timing import summary
from bench.pairs import Pairs
from bench.record import Row
from bench.trainers import CONTESTANTS, Contestant
from bench.trainers.base import Mode
from bench.trainers.worker import END, Setting, serve

PROBES = 2  # steps by which modes are compared, after the first, which makes AdamW's state
NO_MEMORY = "out of memory"

Advance = Callable[[], Any]
Keep = Callable[[list[Row]], None]


class Worker:
    """A process that trains, started again where it died."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._process: Isolated | None = None
        self._has_liger = False

    def ask(self, *message: Any) -> Any:
        """Return the answer to a message of `worker.serve`. Raises Failed."""
        if self._process is None:
            self._process = Isolated(serve, self.setting)
        try:
            answer = self._process.ask(*message)
        except Failed:
            self.end()
            raise
        if isinstance(answer, dict) and "why" in answer:
            raise Failed(answer["why"])
        return answer

    def prepare(self, mode: Mode) -> None:
        """Let go of a process that can't have the mode: Liger's kernels stay in transformers."""
        if self._has_liger and not mode.liger:
            self.end()
        self._has_liger = self._has_liger or mode.liger

    def end(self) -> None:
        """End the process, if there is one."""
        self._has_liger = False
        if self._process is not None:
            self._process.end()
            self._process = None


def measure_by_turns(
    setting: Setting, pairs: Pairs, keys: list[str], repeat: int, advance: Advance, keep: Keep
) -> list[Row]:
    """Return a row a contestant; all are in memory together, each in a process of its own.

    `keep` is given all rows so far after every round of steps.
    """
    rows: dict[str, Row] = {}
    running: dict[str, Worker] = {}
    for key in keys:
        worker = Worker(setting)
        (mode,) = CONTESTANTS[key].modes(len(pairs), cuda=False)
        try:
            rows[key] = _begin(worker, key, pairs, mode)
            running[key] = worker
        except Failed as error:
            rows[key] = {"name": CONTESTANTS[key].name, "why": str(error)}
            worker.end()
        advance()
    steps: dict[str, list[Row]] = {key: [] for key in running}
    for _ in range(repeat):
        for key, worker in list(running.items()):
            try:
                steps[key].append(worker.ask("step"))
            except Failed as error:
                rows[key] = {"name": CONTESTANTS[key].name, "why": str(error)}
                running.pop(key).end()
            advance()
        for key in running:
            rows[key] |= _timed(steps[key])
        keep([rows[key] for key in keys])
    for worker in running.values():
        worker.end()
    return [rows[key] for key in keys]


def measure_in_a_row(
    setting: Setting, pairs: Pairs, keys: list[str], repeat: int, advance: Advance, keep: Keep
) -> list[Row]:
    """Return a row a contestant; `keep` is given all rows so far whenever one is new."""
    rows: list[Row] = []
    for _, members in groupby(keys, key=lambda key: CONTESTANTS[key].family):
        worker = Worker(setting)
        for key in members:
            rows.append(_best_mode(worker, key, pairs, repeat))
            advance()
            keep(rows)
        worker.end()
    return rows


def _best_mode(worker: Worker, key: str, pairs: Pairs, repeat: int) -> Row:
    """Return the row of a contestant's fastest mode; `modes` says what the others took."""
    contestant = CONTESTANTS[key]
    tried: dict[Mode, Row] = {}
    modes = contestant.modes(len(pairs), cuda=True)
    for mode in _tries(contestant, modes, tried):
        # where there is but one, it is timed at once
        tried[mode] = _try(worker, key, pairs, mode, repeat if len(modes) == 1 else PROBES)
    fitting = [mode for mode, row in tried.items() if "seconds" in row]
    others = {mode.text: _short(row) for mode, row in tried.items()}
    if not fitting:
        why = "; ".join(dict.fromkeys(str(row["why"]) for row in tried.values()))
        return {"name": contestant.name, "why": why, "modes": others}
    best = min(fitting, key=lambda mode: tried[mode]["seconds"]["median"])
    row = tried[best] if len(modes) == 1 else _try(worker, key, pairs, best, repeat)
    return row | {"modes": others}


def _tries(contestant: Contestant, modes: list[Mode], tried: dict[Mode, Row]) -> Iterator[Mode]:
    """Yield the modes in turn, none with more pairs than one that found no memory.

    Where no number of pairs is given, passes are halved until they fit.
    """
    for mode in modes:
        if any(
            _no_memory(row) and replace(known, micro_pairs=mode.micro_pairs) == mode
            for known, row in tried.items()
            if known.micro_pairs < mode.micro_pairs
        ):
            continue
        yield mode
        while not contestant.passes and _no_memory(tried[mode]) and mode.micro_pairs > 1:
            mode = replace(mode, micro_pairs=mode.micro_pairs // 2)
            yield mode


def _try(worker: Worker, key: str, pairs: Pairs, mode: Mode, repeat: int) -> Row:
    """Return the row of a mode's steps, or why there is none."""
    try:
        row = _begin(worker, key, pairs, mode)
        steps = [worker.ask("step") for _ in range(repeat)]
        worker.ask(END)
    except Failed as error:
        return {"name": CONTESTANTS[key].name, "why": str(error)}
    return row | _timed(steps)


def _begin(worker: Worker, key: str, pairs: Pairs, mode: Mode) -> Row:
    """Take a contestant's first step, which makes AdamW's state. Raises Failed."""
    worker.prepare(mode)
    worker.ask("train", key, pairs, mode)
    first = worker.ask("step")
    return {
        "name": CONTESTANTS[key].name,
        "mode": mode.text,
        "micro_pairs": mode.micro_pairs,
        "first": {name: first[name] for name in ("loss", "grad_norm")},
    }


def _timed(steps: list[Row]) -> Row:
    return {
        "seconds": summary([step["seconds"] for step in steps]),
        "peak": max(step["peak"] for step in steps),
    }


def _no_memory(row: Row) -> bool:
    return NO_MEMORY in str(row.get("why", ""))


def _short(row: Row) -> float | str:
    return row["seconds"]["median"] if "seconds" in row else str(row["why"])
