"""A run directory → one self-contained HTML page and its PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from comal_fast.errors import InputError
from comal_fast.figures.page import Picture, Section, Table, render_page
from comal_fast.figures.style import DARK, LIGHT, to_png
from comal_fast.report import tables
from comal_fast.report.facts import ended, fixed_point, is_finished, model_name, progress, verdict
from comal_fast.report.load import Run
from comal_fast.report.plots import FIGURES
from comal_fast.store.directory import RunDirectory
from comal_fast.store.files import replacing


def write_run(run: Run) -> Path:
    """Write the PNGs, then the page; returns its path. InputError where that is impossible."""
    directory, pictures = RunDirectory(run.path), {}
    for name, drawn in _figures(run):
        target = directory.pictures / f"{name}.png"
        if drawn is None:
            target.unlink(missing_ok=True)  # of an earlier run in this directory
            continue
        _write(target, drawn[0])
        pictures[name] = Picture.of(*drawn)
    page = directory.report
    _write(page, render(run, pictures).encode("utf-8", "replace"))
    return page


def draw(run: Run) -> dict[str, Picture]:
    """Name → picture, of those that there is something for."""
    return {name: Picture.of(*drawn) for name, drawn in _figures(run) if drawn is not None}


def _figures(run: Run) -> Iterator[tuple[str, tuple[bytes, bytes, str] | None]]:
    """(name, (PNG on light paper, on dark paper, what it shows)); None where nothing is there."""
    for name, (figure, alt) in FIGURES.items():
        light, dark = figure(run, LIGHT), figure(run, DARK)
        if light is None or dark is None:
            yield name, None
        else:
            yield name, (to_png(light), to_png(dark), alt)


def render(run: Run, pictures: dict[str, Picture]) -> str:
    """The page. Text of prompts, responses and config is escaped."""
    source = files("comal_fast.report").joinpath("report.html").read_text(encoding="utf-8")
    result = verdict(run)
    notes = []
    if not is_finished(run) and result.outcome != "none":
        notes.append(f"The run is not finished: {progress(run)}.")
    if how := ended(run):
        notes.append(how)
    if game := fixed_point(run):
        notes.append(f"{game}.")
    notes += [f"Left out: {line}." for line in run.problems]
    return render_page(
        title=f"COMAL report: {model_name(run)}, seed {run.option('seed', 'unknown')}",
        heading=f"COMAL run {run.path.resolve().name}",
        verdict=result,
        facts=tables.headline(run, result),
        sections=_sections(run, pictures),
        notes=notes,
        template=source,
        run=run,
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
    pairs = tables.held_out_pairs(run)
    first = [section("pairs", "Held-out pairs", {}, pairs)] if pairs else []
    return [
        *first,
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


def _write(target: Path, content: bytes) -> None:
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
