"""Tables of studies that are no benches: exact games, and language models that play games."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from comal_fast.errors import InputError
from comal_fast.game.sampled import PROXES
from comal_fast.game.sampled_study import noise_rows, read_rows, table_rows
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
    if "sampled_step" in content:
        return sampled_step(content)
    if "runs" in content:
        study = Study(content)
        return markdown(study, baseline or study.names[-1])
    raise InputError(f"{path}: no record of a study")


def sampled_step(content: dict[str, Any]) -> str:
    """Return the tables of a record of `comal-fast game --study N --samples K`."""
    rows = read_rows(content)
    proxes = [prox for prox in PROXES if any(row.recipe.prox == prox for row in rows)]
    games, samples = len(rows[0].gaps), rows[0].recipe.samples
    limits = [[*cells[:3], *(x for x, p in zip(cells[3:], PROXES, strict=True) if p in proxes)]
              for cells in table_rows(rows)]  # fmt: skip
    parts = [
        f"K = {samples} samples. A cell: the duality gap in P on the paper's game, its median over "
        f"{games} random games of 3 to 6 responses, and the share of them at "
        f"{content['at_nash']:g} or less.",
        _markdown(["pairs", "target", "labels", *(f"`{prox}`" for prox in proxes)], limits),
    ]
    if noisy := noise_rows(rows):
        names = ["pairs", "target", "labels", "noise", "responses", "pairs a prompt", "product"]
        parts += [
            "The noise of one prompt's step by `inpo` at the start of the paper's game, "
            "E‖û − u‖²/‖u‖², the distinct responses and pairs that it trains on, and noise times "
            "responses:",
            _markdown(names, noisy),
        ]
    return "\n\n".join(parts) + "\n"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
