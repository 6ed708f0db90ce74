"""A choice: a group of options of which each variant has its own, told apart by one of them.

Variants register themselves, so that one more is one more class, in this package or in a plugin.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import CoreSchema, core_schema

from comal_fast.errors import InputError

V = TypeVar("V", bound=BaseModel)


class Choice:
    """`tag`: the option that names the variant; `kind`: what a variant is called in messages.

    `look_up`: what may still find a variant that has not been registered, by its name.
    """

    def __init__(self, tag: str, kind: str, default: str) -> None:
        self.tag, self.kind, self.default = tag, kind, default
        self.variants: dict[str, type[Any]] = {}
        self.look_up: Callable[[str], type[BaseModel] | None] = lambda name: None
        self.stale = False  # whether variants came that no schema knows yet

    def register(self, variant: type[V]) -> type[V]:
        """Add a variant, a class whose `tag` has its name as the only value; returns it.

        Raises InputError for a name that is taken by another class.
        """
        (name,) = typing.get_args(variant.model_fields[self.tag].annotation)
        if name in self.variants and self.variants[name] is not variant:
            raise InputError(f"{self.kind} {name!r} is registered already; give another name")
        self.variants[name], self.stale = variant, True
        return variant

    def find(self, name: Any) -> type[BaseModel] | None:
        """The variant of that name, if there is one."""
        if not isinstance(name, str):
            return None
        if name not in self.variants and (found := self.look_up(name)):
            self.register(found)
        return self.variants.get(name)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """A union discriminated by the tag, of the variants that are registered by now."""
        self.stale = False
        schemas = {name: handler.generate_schema(v) for name, v in self.variants.items()}
        return core_schema.tagged_union_schema(schemas, discriminator=self.tag)
