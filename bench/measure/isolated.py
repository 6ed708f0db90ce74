"""Work in a process of its own: it owns its memory and its environment, and ends with it.

Each process starts afresh: glibc reads its variables only then, and nothing that the parent
imported or allocated is counted.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from bench.record import reason
from comal_fast.system.processes import cause
from comal_fast.system.terminal import quiet_libraries


class Failed(Exception):
    """What went wrong in a process, in one line."""


class Parent:
    """Who asks, as the work sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def hear(self) -> Any:
        """The next message. If the parent is gone, the process ends."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit from None

    def answer(self, value: Any) -> None:
        """Give the parent what it waits for."""
        self._pipe.send((True, value))


class Isolated:
    """`work(parent, *arguments)` in a process of its own. All of them must pickle."""

    def __init__(
        self,
        work: Callable[..., None],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_child, args=(other, work, arguments), daemon=True)
        with mock.patch.dict(os.environ, environment or {}):  # a child inherits what stands there
            self._process.start()
        other.close()

    def ask(self, *message: Any) -> Any:
        """The answer to a message. Raises Failed."""
        try:
            self._pipe.send(message)
        except BrokenPipeError:
            raise self._death() from None
        return self.answer()

    def answer(self) -> Any:
        """The next answer. Raises Failed."""
        try:
            right, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if not right:
            raise Failed(answer)
        return answer

    def end(self) -> None:
        """End it and free its memory: it leaves as soon as it finds the pipe closed."""
        self._pipe.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self) -> Failed:
        self.end()
        return Failed(f"its process died ({cause(self._process.exitcode)}); out of memory?")


def run_isolated(
    work: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """What `work(*arguments)` returns in a process of its own. Raises Failed."""
    process = Isolated(_answer_once, work, arguments, environment=environment)
    try:
        return process.answer()
    finally:
        process.end()


def _answer_once(parent: Parent, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    parent.answer(work(*arguments))


def _child(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    quiet_libraries()
    try:
        work(Parent(pipe), *arguments)
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        pipe.send((False, reason(error)))
