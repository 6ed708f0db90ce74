"""A phase in a process of its own: what it held, on the GPU too, is free when it ends.

The processes fork from a server that has imported everything and touched no GPU, so that one more
costs little. To the caller it is as if the phase ran here: its errors, its output, Ctrl-C.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from comal_fast.errors import InputError
from comal_fast.system.doing import remembered
from comal_fast.system.signals import Terminated, listening

PATIENCE = 600  # seconds in which a phase that is ended writes its checkpoint
FIRST = "comal_fast.system.one_thread"  # of what the server imports


def run_apart(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(*arguments)` in a new process; raises what it raises. All of them must pickle.

    Raises InputError where the process was killed.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([FIRST, work.__module__])
    receiver, sender = server.Pipe(duplex=False)
    child = server.Process(target=_child, args=(sender, work, arguments))
    child.start()
    sender.close()
    try:
        error = _outcome(receiver)
        child.join()
    except Terminated:
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        child.join(PATIENCE)  # it writes a checkpoint
        raise
    except KeyboardInterrupt:
        child.join(1)  # the terminal interrupts both
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGINT)
            child.join(10)
        raise
    finally:
        if child.is_alive():
            child.kill()
        child.join()
    if child.exitcode == 130:
        raise KeyboardInterrupt
    if child.exitcode == Terminated.STATUS:
        raise Terminated(signal.SIGTERM.name)
    if child.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM):
        raise RuntimeError(f"the process of this phase ended by {cause(child.exitcode)}")
    if child.exitcode != 0:
        raise InputError(
            f"the process of this phase was killed ({cause(child.exitcode)}); out of memory? "
            "The same command goes on from the last checkpoint"
        )
    if error is not None:
        raise error


def _outcome(receiver: Connection) -> Exception | None:
    try:
        error: Exception | None = receiver.recv()
    except EOFError:  # it ended without a word
        return None
    return error


def cause(exitcode: int | None) -> str:
    """How a process ended: the signal that killed it, or its exit status."""
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit status {exitcode}"


def _child(sender: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        importlib.import_module(FIRST).all_threads()
        with listening():
            work(*arguments)
    except Terminated:
        sys.exit(Terminated.STATUS)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sender.send(_portable(error))
    else:
        sender.send(None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error itself where it pickles; with where it was raised, if it's not meant for users."""
    if isinstance(error, InputError):
        return error if _pickles(error) else InputError(str(error))
    where = traceback.format_exc()
    error.add_note(where)
    if _pickles(error):
        return error
    told = RuntimeError(f"{type(error).__name__}: {error}\n{where}")
    told.__dict__ |= remembered(error)
    return told


def _pickles(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True
