"""YAML file and `key.path=value` overrides → `Config`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from comal_fast.config.schema import Config
from comal_fast.config.validate import validate
from comal_fast.errors import InputError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `key.path=value` overrides (values are YAML), check everything.

    A file may rest on another: `base: other.yaml`, relative to it; what it says itself wins.

    Raises ValueError, one line, for a missing or malformed file, an unknown key (the nearest valid
    one is named), a wrong type, a value out of range, or an option that the rest would ignore.
    """
    tree = _read(Path(path))
    for override in overrides:
        _apply(tree, override)
    config = _build(Config, tree, where=())
    given = {key for key, _ in _leaves(tree)}
    validate(config, given)
    return config


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's options, over those of the file that its key `base` names, relative to it."""
    if not path.is_file():
        raise InputError(f"config {path}: no such file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: expected a mapping of options, found {_kind(tree)}")
    if (base := tree.pop("base", None)) is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"config {path}: base: expected a file name, found {_kind(base)} {base!r}")
    below = path.parent / base
    if below.resolve() in (path.resolve(), *above):
        raise InputError(f"config {path}: base: {base} rests on {path.name} itself")
    return _over(_read(below, (*above, path.resolve())), tree)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Groups of options merged; where both say something, `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def load_saved(path: Path) -> Config:
    """The configuration that a run wrote down: complete, so nothing in it was asked for."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {path.parent} is not a run directory")
    return _build(Config, yaml.safe_load(path.read_text(encoding="utf-8")), where=())


def to_dict(config: Config) -> dict[str, Any]:
    """The whole tree as plain containers, defaults included."""
    return dataclasses.asdict(config)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: expected key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:  # an optional group that was off
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"override {override!r}: {parent} is a value, not a group of options")
        node = child
    node[last] = value


def _build(cls: type, tree: Any, where: tuple[str, ...]) -> Any:
    if not isinstance(tree, dict):
        raise InputError(f"{'.'.join(where)}: expected a group of options, found {_kind(tree)}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise InputError(_unknown(".".join((*where, str(key)))))
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):
        if spec.name in tree:
            values[spec.name] = _value(hints[spec.name], tree[spec.name], (*where, spec.name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            name = ".".join((*where, spec.name))
            if dataclasses.is_dataclass(hints[spec.name]):  # names the missing leaf itself
                values[spec.name] = _build(hints[spec.name], {}, (*where, spec.name))
            else:
                raise InputError(f"{name}: missing, and it has no default")
    return cls(**values)


def _value(hint: Any, value: Any, where: tuple[str, ...]) -> Any:
    name = ".".join(where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _value(_given(hint), value, where)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value is False and "off" in choices:  # YAML 1.1 reads off as a boolean
            value = "off"
        if value is True and "on" in choices:
            value = "on"
        if value not in choices:
            raise InputError(f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{name}: expected a mapping, found {_kind(value)}")
        return {str(k): _value(float, v, (*where, str(k))) for k, v in value.items()}
    if origin is list:  # one value stands for a list of one
        (hint,) = typing.get_args(hint)
        return [_value(hint, v, where) for v in (value if isinstance(value, list) else [value])]
    if hint is float:
        if isinstance(value, str):  # YAML 1.1 reads 5e-7 as a string
            try:
                return float(value)
            except ValueError:
                pass
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    elif isinstance(value, hint):
        return value
    raise InputError(f"{name}: expected {hint.__name__}, found {_kind(value)} {value!r}")


def _given(hint: Any) -> Any:
    """The type behind `… | None`; any other as it is."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return inner


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every option's dotted name."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        hint = _given(hint)
        if dataclasses.is_dataclass(hint):
            keys += known_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _unknown(key: str) -> str:
    keys = known_keys()
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = same_leaf or difflib.get_close_matches(key, keys, n=1, cutoff=0)
    return f"unknown option {key}; the nearest is {near[0]}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
