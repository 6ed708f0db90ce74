"""Runs comal-fast and kills itself, for real, in the middle of a named function's n-th call."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any


def main() -> int:
    target, count, *arguments = sys.argv[1:]
    if target != "never":
        module_name, function_name = target.rsplit(":", 1)
        owner: Any = importlib.import_module(module_name)
        *path, name = function_name.split(".")
        for part in path:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), [0]

        def dying(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == int(count):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, dying)
    from comal_fast.cli import main as cli

    return cli(arguments)


if __name__ == "__main__":
    sys.exit(main())
