"""The verb `comal-fast config`: the options as JSON schema, or one of them explained."""

from __future__ import annotations

import argparse
import builtins
import json
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from comal_fast.config.algorithm import know_losses
from comal_fast.config.choice import Choice
from comal_fast.config.messages import nearest, range_text
from comal_fast.config.options import Options, changes, choice_of, groups_of, inner
from comal_fast.config.plugins import load_plugins
from comal_fast.config.schema import current
from comal_fast.errors import InputError

_BASE = "A file that this one rests on, relative to it; what is said here wins."


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `config` parser with its two verbs."""
    parser: argparse.ArgumentParser = subparsers.add_parser("config")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    schema = verbs.add_parser("schema", help="print the JSON schema of a configuration file")
    schema.set_defaults(run=_schema)
    explain = verbs.add_parser("explain", help="meaning, default and range of an option or group")
    explain.add_argument("name", metavar="NAME", nargs="?", help="such as oracle.name; none: all")
    explain.set_defaults(run=_explain)
    for verb in (schema, explain):
        verb.add_argument(
            "--plugin", action="append", default=[], metavar="FILE", help="as in `plugins:`"
        )


def _schema(args: argparse.Namespace) -> int:
    load_plugins(args.plugin)
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def json_schema() -> dict[str, Any]:
    """Of a configuration file, with every loss, oracle and engine that is registered.

    `base` is the loader's own: a file that this one rests on. To it, or to the command line, a file
    may leave anything, the name of a variant too.
    """
    know_losses()
    schema: dict[str, Any] = _of_a_part(current().model_json_schema())
    schema["properties"]["base"] = {"type": "string", "description": _BASE}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _of_a_part(schema: Any) -> Any:
    """A schema that asks for nothing, and takes a group that fits more than one variant."""
    if isinstance(schema, list):
        return [_of_a_part(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    names = {"oneOf": "anyOf"} if "discriminator" in schema else {}
    return {
        names.get(name, name): _of_a_part(value)
        for name, value in schema.items()
        if name not in ("required", "discriminator")  # no option is called so
    }


def _explain(args: argparse.Namespace) -> int:
    load_plugins(args.plugin)
    know_losses()
    print("\n".join(explain(args.name)))
    return 0


def explain(name: str | None) -> list[str]:
    """Lines on an option, or a line each on the options of a group; None: on the whole tree.

    Raises InputError for an unknown name, with the nearest one.
    """
    if not name:
        return [f"{key}: {text}" for key, text in _list(current(), "")]
    if name == "base":
        return [f"base: {_BASE}", "  type: str", "  default: none"]
    found = _find(current(), name.split("."))
    if not found:
        raise InputError(f"unknown option {name}; the nearest is {nearest(name, current())}")
    lines: list[str] = []
    for field, of in found:
        lines += [*([""] if lines else []), *_said(name, field, of)]
    return lines


def _find(group: type[Options], parts: list[str]) -> list[tuple[FieldInfo, str]]:
    """(field, whose it is): more than one where the variants of a choice differ in it."""
    field = group.model_fields.get(parts[0])
    if field is None:
        return []
    choice = choice_of(field)
    if len(parts) == 1 or (choice is not None and parts[1:] == [choice.tag]):
        return [(field, "")]
    if typing.get_origin(inner(field.annotation)) is dict:  # an entry of a mapping
        return [(field, "")]
    if choice is None:
        return [found for below in groups_of(field) for found in _find(below, parts[1:])]
    alike: dict[tuple[Any, ...], tuple[FieldInfo, list[str]]] = {}
    for variant, below in choice.variants.items():
        for one, _ in _find(below, parts[1:]):
            key = one.description, one.get_default(), range_text(one)
            alike.setdefault(key, (one, []))[1].append(variant)
    every = len(choice.variants)
    return [
        (one, "" if len(names) == every else f" ({choice.kind} {', '.join(names)})")
        for one, names in alike.values()
    ]


def _said(name: str, field: FieldInfo, of: str) -> list[str]:
    if choice := choice_of(field):
        return _choice_said(name.removesuffix(f".{choice.tag}"), field, choice)
    lines = [f"{name}{of}: {_text(field)}"]
    if below := groups_of(field):
        return [*lines, *(f"  {key}: {text}" for key, text in _list(below[0], f"{name}."))]
    limits, result = range_text(field), _RESULT[changes(field)]
    return [
        *lines,
        f"  type: {_type(field)}",
        f"  default: {'none, it must be given' if field.is_required() else _default(field)}",
        *([f"  range: {limits}"] if limits else []),
        f"  changes: {result}",
    ]


_RESULT = {"what": "what is computed", "how": "only how it is computed, never the result"}


def _choice_said(name: str, field: FieldInfo, choice: Choice) -> list[str]:
    lines = [f"{name}.{choice.tag}, default {choice.default}: {_text(field)}"]
    groups = choice.variants.values()
    common = set.intersection(*(set(group.model_fields) for group in groups))
    for variant, group in choice.variants.items():
        lines.append(f"  {variant}: {_text(group.model_fields[choice.tag])}")
        if own := [n for n in group.model_fields if n not in common]:
            lines.append(f"    its options: {', '.join(own)}")
    shared = [n for n in next(iter(groups)).model_fields if n in common and n != choice.tag]
    return [*lines, *([f"  options of all: {', '.join(shared)}"] if shared else [])]


def _list(group: type[Options], prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted name, first sentence) of every option of a group, each once."""
    seen: set[str] = set()
    for name, field in group.model_fields.items():
        below = groups_of(field)
        for each in below:
            for key, text in _list(each, f"{prefix}{name}."):
                if key not in seen:
                    seen.add(key)
                    yield key, text
        if not below:
            yield prefix + name, _text(field).split(". ")[0].rstrip(".")


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _type(field: FieldInfo) -> str:
    hint = inner(field.annotation)
    return _type_text(hint) + (" or none" if hint is not field.annotation else "")


def _type_text(hint: Any) -> str:
    if hint is JsonValue:
        return "any value"
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return " | ".join(map(str, arguments))
        case typing.Annotated:
            return _type_text(arguments[0])
        case builtins.list:
            return f"list of {_type_text(arguments[0])}"
        case builtins.dict:
            return f"mapping of {_type_text(arguments[0])} to {_type_text(arguments[1])}"
    return hint.__name__ if isinstance(hint, type) else str(hint)
