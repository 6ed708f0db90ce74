"""pydantic's account of what is wrong → one line: what, where, what would be right."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options, choice_of, entries_of, group_of, inner, option_names

TYPES = {
    "int_type": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "list_type": "list",
    "dict_type": "mapping",
}


def one_line(error: ValidationError, schema: type[Options]) -> str:
    """The first thing that is wrong; what is missing comes last, for a wrong name explains it."""
    found = min(error.errors(), key=lambda e: e["type"] == "missing")
    place = _Place(schema, found["loc"])
    kind, value = found["type"], found["input"]
    if kind == "extra_forbidden":
        return _unknown(place, schema)
    if kind == "missing":
        return _missing(place)
    if kind == "value_error":
        return str(found["ctx"]["error"])
    if kind in ("literal_error", "union_tag_invalid"):
        if place.is_key:
            return f"{place.name}: no such {_noun(place)}; known: {', '.join(place.choices())}"
        if place.at_choice and place.choice and isinstance(value, dict):
            value = value.get(place.choice.tag)
        return f"{place.name}: {value!r} is not one of {', '.join(place.choices())}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{'.'.join(place.names)}: expected a group of options, found {_kind(value)}"
    if kind in TYPES:
        shown = "nothing" if value is None else f"{_kind(value)} {value!r}"
        return f"{place.name}: expected {TYPES[kind]}, found {shown}"
    if kind == "too_short":
        return f"{place.name}: empty; give at least one"
    if kind == "string_too_short":
        return f"{place.name}: empty; give a name"
    if kind == "finite_number":
        return f"{place.name}: {value} is not a finite number"
    if limits := place.limits():
        return f"{place.name}: {_number(value, place)} {_outside(limits, value)}"
    return f"{place.name}: {found['msg']}"


class _Place:
    """Where in the tree: the option's dotted name, its field, and the choice it stands under."""

    def __init__(self, schema: type[Options], loc: tuple[Any, ...]) -> None:
        names: list[str] = []
        self.field: FieldInfo | None = None
        self.choice: Choice | None = None  # whose variant holds the option
        self.variant: str = ""
        self.group: type[Options] | None = schema
        self.is_key = loc[-1:] == ("[key]",)
        parts = [part for part in loc if part != "[key]"]
        tagged: Choice | None = None
        for part in parts:
            if tagged is not None and part in tagged.variants:
                self.choice, self.variant = tagged, str(part)
                self.group, tagged = tagged.variants[str(part)], None
                continue
            if isinstance(part, int):  # an entry of a list: a group, or a plain value
                tagged = entries_of(self.field.annotation) if self.field else None
                names[-1] += f"[{part}]" if tagged else ""
                continue
            names.append(str(part))
            self.field = self.group.model_fields.get(str(part)) if self.group else self.field
            self.group, tagged = None, None
            if self.field is not None:
                self.group, tagged = group_of(self.field), choice_of(self.field)
        if tagged is not None:
            self.choice = tagged
        self.names = names
        self.at_choice = tagged is not None  # the choice itself, not an option of a variant

    @property
    def name(self) -> str:
        """The dotted name; of a choice that of its tag."""
        names = [*self.names, self.choice.tag] if self.at_choice and self.choice else self.names
        return ".".join(names)

    def choices(self) -> list[str]:
        """What may stand there."""
        if self.at_choice and self.choice:
            return list(self.choice.variants)
        hint = inner(self.field.annotation) if self.field else None
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[0]
        return [str(x) for x in typing.get_args(hint)]

    def limits(self) -> list[Any]:
        """Gt, Ge, Lt, Le of the option, or of a mapping's values."""
        return limits_of(self.field) if self.field else []


def _outside(limits: list[Any], value: Any) -> str:
    if isinstance(value, float) and value != value and not isinstance(limits[0], Gt):
        return "is not a number"
    low = next((m for m in limits if isinstance(m, Gt | Ge)), None)
    high = next((m for m in limits if isinstance(m, Lt | Le)), None)
    if high is not None:
        left = f"({low.gt:g}" if isinstance(low, Gt) else f"[{low.ge:g}" if low else "(−∞"
        right = f"{high.lt:g})" if isinstance(high, Lt) else f"{high.le:g}]"
        return f"is outside {left}, {right}"
    if isinstance(low, Gt):
        return "is not a positive number" if low.gt == 0 else f"must be above {low.gt:g}"
    return f"is too small; it must be at least {low.ge:g}" if low else "is not a finite number"


def limits_of(field: FieldInfo) -> list[Any]:
    """Gt, Ge, Lt, Le of an option, or of the values of a mapping."""
    metadata = list(field.metadata)
    for argument in typing.get_args(inner(field.annotation)):
        info = getattr(argument, "__metadata__", ())
        metadata += [m for x in info for m in (x.metadata if isinstance(x, FieldInfo) else [x])]
    return [m for m in metadata if isinstance(m, Gt | Ge | Lt | Le)]


def range_text(field: FieldInfo) -> str:
    """The range of an option in words; empty where it has none."""
    signs = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}
    return " and ".join(
        f"{signs[type(m)][1]} {getattr(m, signs[type(m)][0]):g}" for m in limits_of(field)
    )


def nearest(key: str, schema: type[Options]) -> str:
    """The known option whose name is most like `key`."""
    keys = list(option_names(schema))
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == leaf]
    return (same_leaf or difflib.get_close_matches(key, keys, n=1, cutoff=0))[0]


def _unknown(place: _Place, schema: type[Options]) -> str:
    choice, option = place.choice, place.names[-1]
    if choice is not None and any(option in v.model_fields for v in choice.variants.values()):
        group = ".".join(place.names[:-1])
        variant = choice.variants[place.variant]
        common = set.intersection(*(set(v.model_fields) for v in choice.variants.values()))
        own = {f"{group}.{name}" for name in variant.model_fields.keys() - common}
        reads = sorted(own.union(getattr(variant, "pairing", ()))) or ["nothing of its own"]
        return (
            f"{place.name}: {choice.kind} {place.variant} ignores it; it reads {', '.join(reads)}"
        )
    return f"unknown option {place.name}; the nearest is {nearest(place.name, schema)}"


def _missing(place: _Place) -> str:
    """Of the first option without a default in a group that is missing altogether."""
    name, field, group = place.name, place.field, place.group
    while group is not None:
        first, field = next((n, f) for n, f in group.model_fields.items() if f.is_required())
        name, group = f"{name}.{first}", group_of(field)
    meaning = " ".join((field.description or "").split()).rstrip(".") if field else ""
    return f"{name}: missing, and it has no default; give it: {meaning}"


def _noun(place: _Place) -> str:
    return "criterion" if place.names[:1] == ["oracle"] else "key"


def _number(value: Any, place: _Place) -> str:
    hint = inner(place.field.annotation) if place.field else None
    return str(float(value)) if hint is float and isinstance(value, int) else str(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
