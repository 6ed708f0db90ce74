"""What every group of options is: frozen, strict about types and names, documented by field."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from comal_fast.config.choice import Choice
from comal_fast.errors import InputError

Changes = Literal["what", "how"]


class Options(BaseModel):
    """A group of options. A field's docstring is its description, its range stands beside it.

    Types are strict, but for what YAML and a command line make of a value (see `read_value`). Every
    float has a range, which refuses NaN; `.inf` stands for never where there is no upper end.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: read_value(cls.model_fields[name], value) if name in cls.model_fields else value
            for name, value in given.items()
        }


def how(default: Any, **limits: Any) -> Any:
    """A field that changes *how* something is computed, never *what* comes of it: in no key."""
    return Field(default, json_schema_extra={"changes": "how"}, **limits)


def changes(field: FieldInfo) -> Changes:
    """Whether an option changes what is computed, or only how."""
    extra = field.json_schema_extra
    return "how" if isinstance(extra, dict) and extra.get("changes") == "how" else "what"


def what(options: Options) -> dict[str, Any]:
    """A group as plain containers, without the options that change only how: for keys."""
    fields = type(options).model_fields
    kept = {n: getattr(options, n) for n, f in fields.items() if changes(f) == "what"}
    inner = {n: what(value) for n, value in kept.items() if isinstance(value, Options)}
    return options.model_dump(include=set(kept)) | inner


def check_text(tree: Any, prefix: str = "") -> None:
    """Raise InputError for a name that is no text, or a value with a NUL, in plain containers.

    Half a surrogate pair, which YAML can write, is none either.
    """
    if isinstance(tree, str) and "\0" in tree:
        raise InputError(f"{prefix}: {tree!r} holds a NUL character")
    if isinstance(tree, str) and any("\ud800" <= c <= "\udfff" for c in tree):
        raise InputError(f"{prefix}: {tree!a} holds half a surrogate pair")
    for value in tree if isinstance(tree, list) else ():
        check_text(value, prefix)
    for name, value in tree.items() if isinstance(tree, dict) else ():
        place = f"{prefix}.{name}" if prefix else str(name)
        if not isinstance(name, str):
            raise InputError(
                f"{place}: {name!r} is no name of an option; in YAML on, off, yes and no are "
                "booleans, so quote it"
            )
        check_text(value, place)


def choice_of(field: FieldInfo) -> Choice | None:
    """The choice that a field stands for, if it is one."""
    return next((m for m in field.metadata if isinstance(m, Choice)), None)


def entries_of(hint: Any) -> Choice | None:
    """The choice that each entry of a list is, if it is one."""
    hint = inner(hint)
    if typing.get_origin(hint) is not list:
        return None
    metadata = getattr(typing.get_args(hint)[0], "__metadata__", ())
    return next((m for m in metadata if isinstance(m, Choice)), None)


def group_of(field: FieldInfo) -> type[Options] | None:
    """The group that a field holds (`… | None` too); None where it holds a value or a choice."""
    hint = inner(field.annotation)
    if choice_of(field) is None and isinstance(hint, type) and issubclass(hint, Options):
        return hint
    return None


def inner(hint: Any) -> Any:
    """The type behind `… | None`; any other as it is."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    given = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return given[0] if len(given) == 1 else hint


def groups_of(field: FieldInfo) -> list[type[Options]]:
    """The groups that a field may hold: its own, every variant of a choice, or none."""
    if choice := choice_of(field):
        return [typing.cast(type[Options], variant) for variant in choice.variants.values()]
    group = group_of(field)
    return [group] if group else []


def option_names(group: type[Options], prefix: str = "") -> Iterator[str]:
    """The dotted name of every option, those of all variants included; some come twice."""
    for name, field in group.model_fields.items():
        below = groups_of(field)
        for each in below:
            yield from option_names(each, f"{prefix}{name}.")
        if not below:
            yield prefix + name


def how_names(group: type[Options], prefix: str = "") -> Iterator[str]:
    """The dotted names of the options that change only how something is computed."""
    for name, field in group.model_fields.items():
        if changes(field) == "how":
            yield prefix + name
        for each in groups_of(field):
            yield from how_names(each, f"{prefix}{name}.")


def read_value(field: FieldInfo, value: Any) -> Any:
    """A value as it was meant: what YAML 1.1 and the command line can't say, repaired.

    5e-7 is a string in YAML 1.1 and off a boolean, a revision may look like a number or a date, one
    value stands for a list of one, and a choice without its name is the default one.
    """
    if choice := choice_of(field):
        return _named(choice, value)
    return as_meant(field.annotation, value)


def _named(choice: Choice, value: Any) -> Any:
    unnamed = isinstance(value, dict) and choice.tag not in value
    return {choice.tag: choice.default, **value} if unnamed else value


def as_meant(hint: Any, value: Any) -> Any:
    """A value of that type as it was meant, the entries of lists and mappings too."""
    hint = inner(hint)
    if value is None:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if hint is str and (number or isinstance(value, date)):
        return str(value)
    if origin is Annotated:
        return as_meant(arguments[0], value)
    if origin is Literal and isinstance(value, bool):
        word = "on" if value else "off"
        return word if word in arguments else value
    if origin is list:
        entries = value if isinstance(value, list) else [value]
        if choice := entries_of(hint):
            return [_named(choice, entry) for entry in entries]
        return [as_meant(arguments[0], entry) for entry in entries]
    if origin is dict and isinstance(value, dict):
        return {name: as_meant(arguments[1], entry) for name, entry in value.items()}
    return value
