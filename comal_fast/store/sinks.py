"""Log sinks: who else is told each row of metrics, as it is written.

A plugin registers one; from then on every run of the process tells it. metrics.jsonl needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Sink = Callable[[Mapping[str, Any]], None]
_sinks: list[Sink] = []


def register(sink: Sink) -> Sink:
    """Tell `sink` every new row: `phase`, `iteration`, and the measures by name; returns it.

    A phase that is run again, after a kill say, tells its rows again. Usable as a decorator.
    """
    _sinks.append(sink)
    return sink


def tell(row: Mapping[str, Any]) -> None:
    """Pass a row on to all of them."""
    for sink in _sinks:
        sink(row)
