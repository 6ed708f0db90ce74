"""A run directory → one self-contained HTML page and its PNGs."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from comal_fast.errors import InputError
from comal_fast.figures.style import DARK, LIGHT, to_png
from comal_fast.report import tables
from comal_fast.report.facts import ended, is_finished, model_name, progress, verdict
from comal_fast.report.load import Run
from comal_fast.report.plots import FIGURES
from comal_fast.report.tables import Table
from comal_fast.store.directory import RunDirectory
from comal_fast.store.files import replacing

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # not allowed in HTML


@dataclass(frozen=True)
class Picture:
    """A figure on light and on dark paper, as data URIs."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of the page: pictures, tables, and one line for each thing that is not there yet."""

    anchor: str
    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()
    lines: Sequence[str] = ()


def write_run(run: Run) -> Path:
    """Write the PNGs, then the page; returns its path. InputError where that is impossible."""
    directory, pictures = RunDirectory(run.path), {}
    for name, (draw, alt) in FIGURES.items():
        target = directory.pictures / f"{name}.png"
        light, dark = draw(run, LIGHT), draw(run, DARK)
        if light is None or dark is None:
            target.unlink(missing_ok=True)  # of an earlier run in this directory
            continue
        content = to_png(light)
        _write(target, content)
        pictures[name] = Picture(_data_uri(content), _data_uri(to_png(dark)), alt)
    page = directory.report
    text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", render(run, pictures))
    _write(page, text.encode("utf-8", "replace"))
    return page


def render(run: Run, pictures: dict[str, Picture]) -> str:
    """The page. Text of prompts, responses and config is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("comal_fast.report").joinpath("report.html").read_text(encoding="utf-8")
    result = verdict(run)
    return environment.from_string(source).render(
        title=f"COMAL report: {model_name(run)}, seed {run.option('seed', 'unknown')}",
        run=run,
        name=run.path.resolve().name,
        verdict=result,
        unfinished=None if is_finished(run) else progress(run),
        ended=ended(run),
        facts=tables.headline(run, result),
        sections=_sections(run, pictures),
        config=tables.flatten(run.config),
        environment=tables.environment(run),
    )


def _sections(run: Run, pictures: dict[str, Picture]) -> list[Section]:
    def section(
        anchor: str, title: str, names: dict[str, str], *found: Table | None, note: str = ""
    ) -> Section:
        """`names`: picture → what to say where it is missing."""
        return Section(
            anchor,
            title,
            [pictures[name] for name in names if name in pictures],
            [table for table in found if table is not None],
            [line for name, line in names.items() if line and name not in pictures],
            [note] if note else [],
        )

    memory = tables.memory_line(run)
    return [
        section(
            "win-rates", "Win rates",
            {"win_rate": "No trained iterate has been evaluated yet, so there is no win rate.",
             "win_matrix": "Fewer than two iterates have been evaluated, so there is no matrix."},
            tables.iterates(run), tables.empirical_game_table(run), tables.win_matrix_table(run),
        ),
        section(
            "diagnostics", "Diagnostics", {}, tables.diagnoses(run),
            note=tables.diagnoses_line(run),
        ),
        section(
            "training", "Training",
            {"training": "No optimizer step has been logged yet."},
            note="Vertical lines part the iterations; dashed ones mark where the reference moved."
            if "training" in pictures else "",
        ),
        section(
            "kl", "KL divergence",
            {"kl": "No KL divergence of a trained iterate has been measured yet."},
        ),
        section(
            "responses", "Length and fluency",
            {"response_length": "No held-out response has been measured yet.",
             "fluency": "Neither repetition nor finished responses have been measured yet."},
            note="Boxes show quartiles, lines 5% to 95%, diamonds means, dots single responses."
            if "response_length" in pictures else "",
        ),
        section(
            "oracle", "Sampling and judging",
            {"oracle": "No iteration has been judged yet."}, tables.iterations_table(run),
        ),
        section(
            "time", "Time and memory",
            {"time": "No phase has been timed yet."}, tables.time_table(run), note=memory,
        ),
    ]  # fmt: skip


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _write(target: Path, content: bytes) -> None:
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
