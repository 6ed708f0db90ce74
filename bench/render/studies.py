"""Tables of studies that are no benches: exact games, and language models that play games."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

from rich.console import Console

from comal_fast.errors import InputError
from comal_fast.game.study import Result, study_table
from comal_fast.lm_game.study import Study
from comal_fast.lm_game.study_tables import markdown

WIDTH = 80


def render(path: Path, baseline: str | None) -> str:
    """The tables of a record of `comal-fast game --study` or of `comal-fast lm-game study`.

    `baseline`: the run that the latter's others are compared with. InputError for other files.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, ValueError):
        raise InputError(f"{path}: no record of a study") from None
    if "algorithms" in content:
        out = io.StringIO()
        table = study_table([Result(**each) for each in content["algorithms"]])
        Console(file=out, width=WIDTH, color_system=None).print(table)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        return "```\n" + "\n".join(lines) + "\n```\n"
    if "runs" in content:
        study = Study(content)
        return markdown(study, baseline or study.names[-1])
    raise InputError(f"{path}: no record of a study")
