"""A self-contained HTML page of figures and tables: what it is made of, and how it is rendered."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import jinja2

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # not allowed in HTML


@dataclass(frozen=True)
class Verdict:
    """The sentence at the top, and what colours it."""

    text: str
    outcome: Literal["better", "worse", "open", "none"]


@dataclass(frozen=True)
class Picture:
    """A figure on light and on dark paper, as data URIs."""

    light: str
    dark: str
    alt: str

    @classmethod
    def of(cls, light: bytes, dark: bytes, alt: str) -> Picture:
        """Of two PNGs."""
        return cls(_data_uri(light), _data_uri(dark), alt)


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row.

    `folded`: shown after a click. `prose`: the last column holds sentences.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False
    folded: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: pictures, tables, and one line for each thing that is not there yet."""

    anchor: str
    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()
    lines: Sequence[str] = ()


def render_page(
    title: str,
    heading: str,
    verdict: Verdict,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    template: str | None = None,
    **values: Any,
) -> str:
    """The page; all text is escaped.

    `template`: the source of one that extends `page.html`, for which `values` are.
    """
    here = files("comal_fast.figures")
    sources = {n: here.joinpath(n).read_text("utf-8") for n in ("page.html", "macros.html")}
    sources["child.html"] = template or '{% extends "page.html" %}'
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("child.html").render(
        title=title,
        heading=heading,
        verdict=verdict,
        facts=facts,
        sections=sections,
        notes=notes,
        **values,
    )
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
