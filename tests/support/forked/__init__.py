"""A Python for tests that has imported everything already: each program is a fork of one server.

`python()` is a path that stands for `sys.executable`: same arguments, environment, folder, streams,
signals and status, without the ten seconds that importing torch and transformers takes. A program
whose environment differs in what those read as they load runs in a Python of its own.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def python() -> str:
    """The path of an executable; its server starts with the first call and ends with this one."""
    if not hasattr(os, "fork"):
        return sys.executable
    for name in {"COLUMNS", "LINES"} - os.environ.keys():
        os.unsetenv(name)  # readline, which pytest loads, sets them where only programs see them
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    socket, program = Path(folder.name) / "socket", Path(folder.name) / "python"
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -SEs "{HERE / "launcher.py"}" '
        f'"{socket}" "{sys.executable}" "$0" "$@"\n'
    )
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), str(socket)],
        stdin=subprocess.PIPE,  # the server ends when this closes, however we end
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return str(program)
