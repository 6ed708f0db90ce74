"""Signals by which people and schedulers end a run: it stops where nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

ENDING = (signal.SIGTERM, signal.SIGUSR1)


class Terminated(BaseException):
    """A scheduler ends the run; its text names the signal."""

    STATUS = 143


T = TypeVar("T")
_INTERRUPTED = "a signal"
_waiting = 0  # blocks within which an ending is put off
_asked: str | None = None  # the signal that came meanwhile


@contextmanager
def listening() -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 raise Terminated, and a second Ctrl-C ends at once.

    Whatever is being written then is whole or absent. Only the main thread can listen.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = None
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGINT)}
    for number in ENDING:
        signal.signal(number, _end)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_off() -> Iterator[None]:
    """Within the block an ending waits for `asked`, or for the block's end."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
    if not _waiting and _asked:
        raise Terminated(_asked)


def asked() -> bool:
    """Whether an ending is waiting."""
    return _asked is not None


def interruptible(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the loop. Ctrl-C, or a signal listened to, ends it between two of its steps.

    Raised inside a step, it could fall into a library's clean-up, or a destructor, and be lost.
    """
    task = loop.create_task(work)
    if threading.current_thread() is not threading.main_thread():
        return loop.run_until_complete(task)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        if number == signal.SIGINT:
            signal.signal(number, lambda *_: os._exit(130))  # a second one ends at once
        came.append(number)
        task.cancel(_INTERRUPTED)

    for number in before:
        loop.add_signal_handler(number, end, number)
    try:
        result = loop.run_until_complete(task)
        if not came:  # else it came in the last step
            return result
    except asyncio.CancelledError as error:
        if error.args != (_INTERRUPTED,):
            raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    before[came[0]](came[0], None)
    raise KeyboardInterrupt


def _end(number: int, frame: Any) -> None:
    global _asked
    first, _asked = _asked is None, signal.Signals(number).name
    if first and not _waiting:
        raise Terminated(_asked)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    raise KeyboardInterrupt
