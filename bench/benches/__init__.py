"""The benches, a file each: what it runs, its rows, its text and its picture."""

from __future__ import annotations

import importlib
import pkgutil

from bench.bench import Bench


def discover() -> list[Bench]:
    """The BENCH of every file here, by verb."""
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    found: list[Bench] = [importlib.import_module(name).BENCH for name in names]
    return sorted(found, key=lambda bench: bench.verb)
