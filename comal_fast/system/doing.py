"""What is being done, for the one line before a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_stack: list[Callable[[], str]] = []
_ATTRIBUTE = "comal_doing"  # of an exception; goes with it through pickling


@contextmanager
def doing(what: str | Callable[[], str]) -> Iterator[None]:
    """An exception that leaves the block remembers `what`, outermost first."""
    _stack.append(what if callable(what) else lambda: what)
    try:
        yield
    except BaseException as error:
        if not hasattr(error, _ATTRIBUTE):
            with suppress(Exception):  # some take no attributes, and the error itself comes first
                setattr(error, _ATTRIBUTE, [say() for say in _stack])
        raise
    finally:
        _stack.pop()


def remembered(error: BaseException) -> dict[str, Any]:
    """The attributes by which another exception says the same of what was being done."""
    said = getattr(error, _ATTRIBUTE, None)
    return {} if said is None else {_ATTRIBUTE: said}


def done_when(error: BaseException) -> str:
    """What was being done when it was raised: `train, iteration 2: train π_2, 7 of 10 steps`."""
    return ": ".join(getattr(error, _ATTRIBUTE, []))
