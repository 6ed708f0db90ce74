"""`plugins:`, files and modules of the user's own, imported before the options are read.

A plugin registers what it brings as it is imported: a prox loss (`comal_kernels.register`), an
oracle (`comal_fast.oracles.register`), a log sink (`comal_fast.sinks.register`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from comal_fast.errors import InputError

_loaded: dict[str, str] = {}  # module name → hash of its file


def find_plugins(names: Sequence[Any]) -> list[Any]:
    """The same with files by their whole path, from the working directory."""
    return [
        str(Path(n).expanduser().resolve()) if isinstance(n, str) and n.endswith(".py") else n
        for n in names
    ]


def load_plugins(names: Sequence[Any]) -> None:
    """Import each once: `file.py`, relative to the working directory, or `package.module`.

    Raises InputError for what is not there; what a plugin raises itself is raised as it is.
    """
    for name in names:
        if isinstance(name, str) and name:  # anything else is refused with the other options
            imported(name, "plugins")


def imported(name: str, option: str) -> tuple[ModuleType, str]:
    """The module `file.py` or `package.module`, imported once, and a hash of its file.

    Raises InputError that names `option` for what is not there.
    """
    file = name.endswith(".py")
    key = _load_file(Path(name), option) if file else _load_module(name, option)
    return sys.modules[key], _loaded[key]


def sources(names: Sequence[str]) -> dict[str, str]:
    """Plugin → a hash of its file, of those that are loaded now."""
    files = {n: Path(n).read_bytes() for n in names if n.endswith(".py")}
    found = {n: hashlib.sha256(content).hexdigest()[:32] for n, content in files.items()}
    return {n: found.get(n) or _loaded[n] for n in names}


def source_of(module: str) -> str | None:
    """A hash of the plugin that is the module of that name; None where it is no plugin."""
    return _loaded.get(module)


def _load_file(path: Path, option: str) -> str:
    if not path.is_file():
        raise InputError(f"{option}: {path}: no such file")
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    name = f"comal_plugin_{content}"  # a copy elsewhere is the same plugin
    if name in _loaded:
        return name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a name that ends in .py has both
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[name] = content
    return name


def _load_module(name: str, option: str) -> str:
    if name in _loaded:
        return name
    try:
        found = None if name.startswith(".") else importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None:
        raise InputError(f"{option}: {name}: no such module; a file ends in .py")
    module = importlib.import_module(name)
    file = module.__file__
    _loaded[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:32] if file else name
    return name
