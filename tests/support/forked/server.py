"""server.py SOCKET: imports everything, computes nothing, and forks for each launcher that asks."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from comal_fast.system import terminal
from comal_fast.system.ranks import is_main

STARTED = dict(os.environ)


def load() -> None:
    """What most programs of the tests import."""
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import comal_fast.cli
    import comal_fast.loop
    import comal_fast.phases.train  # noqa: F401

    transformers.AutoModelForCausalLM._model_mapping[transformers.LlamaConfig]  # loads its module


def serve(place: str) -> dict[str, Any] | None:
    """Fork for each that asks until stdin closes. Returns the request in the fork."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    listening.listen(64)
    asking: dict[socket.socket, int] = {}  # connection → pid
    while True:
        ready, _, _ = select.select([0, listening, *asking], [], [], 0.01 if asking else None)
        if 0 in ready:  # closed
            for pid in asking.values():
                os.kill(pid, signal.SIGKILL)
            return None
        for connection in set(ready) & asking.keys():  # its launcher was killed
            os.kill(asking[connection], signal.SIGKILL)
        if listening in ready:
            connection, _ = listening.accept()
            connection.sendall(json.dumps(STARTED).encode() + b"\n")
            size, streams, _, _ = socket.recv_fds(connection, 8, 3)
            if not size:  # it has gone its own way
                connection.close()
                continue
            text = b""
            while len(text) < int.from_bytes(size, "big"):
                text += connection.recv(1 << 20)
            if (pid := os.fork()) == 0:
                os.setsid()  # who ends its own process group is not to end pytest's
                for other in (listening, connection, *asking):
                    other.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                return dict(json.loads(text))
            for stream in streams:
                os.close(stream)
            connection.sendall(f"{pid}\n".encode())
            asking[connection] = pid
        for connection, pid in list(asking.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del asking[connection]
                with contextlib.suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def become(request: dict[str, Any]) -> None:
    """Run the request's program as a fresh Python would."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name in ("stdin", "stdout", "stderr"):
        number = ("stdin", "stdout", "stderr").index(name)
        mode = "r" if name == "stdin" else "w"
        line = name == "stderr" or os.isatty(number)
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = open(number, mode, buffering=1 if line else -1, errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.executable = request["python"]
    terminal.console.quiet = not is_main()  # settled at import, when there were no ranks
    if path := request["environment"].get("PYTHONPATH"):
        sys.path[:0] = [x for x in path.split(os.pathsep) if x not in sys.path]
    first, *rest = request["arguments"]
    if first == "-c":
        code, *arguments = rest
        sys.argv[:], sys.path[:0] = ["-c", *arguments], [""]
        main = type(sys)("__main__")
        main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        module, *arguments = rest
        sys.argv[:], sys.path[:0] = [module, *arguments], [os.getcwd()]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[:0] = [first, *rest], [str(Path(first).resolve().parent)]
        main = type(sys)("__main__")
        main.__dict__.update(__builtins__=builtins, __file__=first)
        sys.modules["__main__"] = main
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


def outcome(request: dict[str, Any]) -> tuple[int, str]:
    """(exit status, last words) of the request's program."""
    try:
        become(request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0, ""
        return 1, f"{error.code}\n"
    except BaseException:
        return 1, traceback.format_exc()
    return 0, ""


def end(status: int, words: str) -> None:
    """Do what Python does at its end but for taking everything apart, which takes seconds."""
    sys.stderr.write(words)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 120
    os._exit(status & 0xFF)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's
    load()
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # else a collection would copy all that is shared
    given = serve(sys.argv[1])
    end(*((0, "") if given is None else outcome(given)))
