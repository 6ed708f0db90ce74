"""YAML file and `key.path=value` overrides → `Config`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from comal_fast.config.algorithm import know_losses
from comal_fast.config.options import as_meant, option_names
from comal_fast.config.plugins import find_plugins, load_plugins
from comal_fast.config.schema import CHOICES, Config, build, current
from comal_fast.config.validate import ignored, validate
from comal_fast.errors import InputError
from comal_fast.system.terminal import console


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `key.path=value` overrides (values are YAML), check everything.

    A file may rest on another: `base: other.yaml`, relative to it; what it says itself wins.

    Raises InputError, one line, for a missing or malformed file, an unknown key (the nearest valid
    one is named), a wrong type, a value out of range, or an option that the rest would ignore.
    """
    tree = _read(Path(path))
    _change_variants(tree, overrides)
    for override in overrides:
        apply_override(tree, override)
    config = build(tree)
    validate(config, {key for key, _ in leaves(tree)})
    return config


def _change_variants(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Leave out, and say so, what the file sets of a variant that an override changes to another.

    Of a name that is none, of an option that the variant never had, `build` has more to say.
    """
    for group, choice in CHOICES.items():
        options, tag = tree.get(group), f"{group}.{choice.tag}="
        named = [text.removeprefix(tag) for text in overrides if text.startswith(tag)]
        if not named or not isinstance(options, dict):
            continue
        before = choice.find(options.get(choice.tag, choice.default))
        after = choice.find(named[-1])
        if before is None or after is None:
            continue
        for name in [n for n in options if n in before.model_fields.keys() - after.model_fields]:
            del options[name]
            console.print(f"  {tag}{named[-1]} has no {name}; what the file says is left out")


def know_plugins(path: str | Path) -> None:
    """Import the plugins that a file names, so that `known_keys` holds their options."""
    plugins = as_meant(list[str], _read(Path(path)).get("plugins")) or []
    if plugins:
        load_plugins(find_plugins(plugins))
        know_losses()


def load_saved(path: Path) -> Config:
    """The configuration that a run wrote down, of this version or of 0.1.

    It is complete, so nothing in it was asked for; 0.1 wrote every choice's options too, which are
    left out here.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {path.parent} is not a run directory")
    tree = _parse(path)
    for group, choice in CHOICES.items():
        options = tree.get(group)
        if not isinstance(options, dict):
            continue
        chosen = choice.find(options.get(choice.tag, choice.default))
        if chosen is not None:
            others = {n for v in choice.variants.values() for n in v.model_fields}
            for name in (options.keys() & others) - chosen.model_fields.keys():
                del options[name]
    return build(to_dict(build(tree)))  # without what the other options leave without effect


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `key.path=value` set. Raises InputError as `load_config` does."""
    if not overrides:
        return config
    tree = to_dict(config)
    for group, choice in CHOICES.items():  # another variant has options of its own
        name = f"{group}.{choice.tag}"
        chosen = [t.partition("=")[2] for t in overrides if t.partition("=")[0] == name]
        if chosen and chosen[-1] != tree[group][choice.tag]:
            tree[group] = {}
    for text in overrides:
        apply_override(tree, text)
    return build(tree)


def to_dict(config: Config) -> dict[str, Any]:
    """The tree as plain containers, defaults included, as `load_config` takes it back.

    Left out is what the other options leave without effect.
    """
    tree = config.model_dump()
    for name in ignored(config):
        group, _, option = name.partition(".")
        tree[group].pop(option, None)
    return tree


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a tree of plain containers; empty groups are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys() -> list[str]:
    """Every option's dotted name, those of all variants included."""
    return list(dict.fromkeys(option_names(current())))


class _Once(yaml.SafeLoader):
    """YAML in which no key stands twice: the later would hide the earlier."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Once)  # noqa: S506 - a safe loader
    except OSError as error:
        raise InputError(f"config {path}: can't be read ({error.strerror})") from None
    except RecursionError:
        raise InputError(f"config {path}: not valid YAML: nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # of UTF-8, or a date that is none
        raise InputError(f"config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"config {path}: expected a mapping of options, found {_kind(tree)}")
    return tree


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's options, over those of the file that its key `base` names, relative to it."""
    if not path.is_file():
        raise InputError(f"config {path}: no such file")
    tree = _parse(path)
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


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the option that `key.path=value` names. Raises InputError where that can't be."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: expected key.path=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, say
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


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
