"""`--grid key=a,b,c` → the cells of a grid, each a checked configuration."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from comal_fast.config import Config, known_keys, load_config
from comal_fast.errors import InputError
from comal_fast.store.directory import RunDirectory

OWN = "output_dir"  # of the sweep; each cell has its own below it


@dataclass(frozen=True)
class Axis:
    """An option and the values that the grid gives it, as they were typed."""

    key: str
    values: tuple[str, ...]

    @property
    def short(self) -> str:
        """The option without its group, where no other has that name."""
        leaf = self.key.rsplit(".", 1)[-1]
        return leaf if len(_with_leaf(leaf)) == 1 else self.key


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    name: str
    settings: dict[str, str]
    """Axis key → value."""
    config: Config

    @property
    def directory(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.config.output_dir)


def full_name(key: str) -> str:
    """The dotted name of an option; a name without its group will do where it is unique."""
    known = known_keys()
    if key in known or "." in key:
        return key
    matches = _with_leaf(key)
    if len(matches) > 1:
        raise InputError(f"option {key}: could be {' or '.join(matches)}; give one of these")
    if not matches:
        near = difflib.get_close_matches(key, [k.rsplit(".", 1)[-1] for k in known], 1, 0)
        raise InputError(f"unknown option {key}; the nearest is {_with_leaf(near[0])[0]}")
    return matches[0]


def full_override(word: str) -> str:
    """key=value with the option's dotted name."""
    key, equals, value = word.partition("=")
    return f"{full_name(key)}={value}" if equals else word


def parse_axes(words: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """(axes, overrides): an option with a single value is the same in every cell, no axis."""
    axes: list[Axis] = []
    fixed: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        values = tuple(value.strip() for value in text.split(","))
        if not equals or not key or not all(values):
            raise InputError(f"--grid {word!r}: expected key=value,value,…")
        key = full_name(key)
        if key in [axis.key for axis in axes]:
            raise InputError(f"--grid {key}: given twice")
        if len(set(values)) < len(values):
            raise InputError(f"--grid {key}: a value stands there twice")
        if len(values) == 1:
            fixed.append(f"{key}={text}")
        elif key == OWN:
            raise InputError("--grid output_dir: cells have their own folders; give one value")
        else:
            axes.append(Axis(key, values))
    if not axes:
        raise InputError("--grid: no option has two values or more; give key=a,b")
    return axes, fixed


def expand(path: str, axes: Sequence[Axis], overrides: Sequence[str]) -> tuple[Path, list[Cell]]:
    """(folder of the sweep, its cells in order). InputError, naming the cell, for a bad one."""
    folder: Path | None = None
    cells = []
    for values in product(*(axis.values for axis in axes)):
        settings = {axis.key: value for axis, value in zip(axes, values, strict=True)}
        name = ",".join(f"{axis.short}={settings[axis.key]}" for axis in axes)
        options = [*overrides, *(f"{key}={value}" for key, value in settings.items())]
        try:
            if folder is None:
                folder = Path(load_config(path, options).output_dir)
            place = f"{OWN}={folder / 'cells' / name.replace('/', '_')}"
            cells.append(Cell(name, settings, load_config(path, [*options, place])))
        except InputError as error:
            raise InputError(f"cell {name}: {error}") from None
    assert folder is not None
    return folder, cells


def _with_leaf(leaf: str) -> list[str]:
    return [key for key in known_keys() if key.rsplit(".", 1)[-1] == leaf]
