"""Functions that all ranks run when rank 0 calls them.

Only rank 0 runs the loop: it alone looks at artefacts, decides what is left to do, and writes. So
ranks can't come to differ in what they believe is done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from comal_fast.distributed.group import broadcast

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")
_functions: dict[str, Callable[..., Any]] = {}


def collective(function: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """The function as one that all ranks run when rank 0 calls it; rank 0 has its result.

    It takes a context, each rank's own, and arguments that can be pickled.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    _functions[name] = function

    @wraps(function)
    def call(context: C, *args: P.args, **kwargs: P.kwargs) -> R:
        broadcast((name, args, kwargs))
        return function(context, *args, **kwargs)

    return call


def serve(context: Any) -> None:
    """On the other ranks: do what rank 0 calls, until it says that all is done."""
    while (call := broadcast(None)) is not None:
        name, args, kwargs = call
        _functions[name](context, *args, **kwargs)


def dismiss() -> None:
    """On rank 0: tell the others that all is done."""
    broadcast(None)
