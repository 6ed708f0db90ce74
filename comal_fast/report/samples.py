"""Held-out responses before and after, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from comal_fast.store.directory import RunDirectory

MAX_COMPARISONS = 12


@dataclass(frozen=True)
class Response:
    """A held-out response."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class BeforeAfter:
    """The same held-out prompt answered by the initial policy and by a later iterate."""

    prompt_id: int
    prompt: str
    before: Response
    after: Response


def load_comparisons(
    directory: RunDirectory, problems: list[str], iterate: int | None = None
) -> tuple[int | None, list[BeforeAfter]]:
    """(a sampled iterate, its responses beside the initial policy's); (None, []) without one.

    Of the latest, unless `iterate` says which. On prompts evenly spaced over those of both. Files
    that can't be read are noted in `problems`.
    """
    sampled = directory.sampled()
    if 0 not in sampled or sampled == [0]:
        return None, []
    last = max(sampled) if iterate is None else iterate
    before, after = (
        _responses(directory.iteration(t).eval_samples.path, directory.path, problems)
        for t in (0, last)
    )
    shared = [key for key in before if key in after]
    places = np.linspace(0, len(shared) - 1, min(len(shared), MAX_COMPARISONS)).round()
    keys = [shared[int(i)] for i in places]
    return last, [BeforeAfter(key[0], key[1], before[key], after[key]) for key in keys]


def _responses(path: Path, root: Path, problems: list[str]) -> dict[tuple[int, str], Response]:
    """(prompt_id, prompt) → its sample 0, by prompt_id."""
    try:
        columns = ["prompt_id", "sample", "prompt", "response", "response_ids", "finished"]
        table = pq.read_table(path, columns=columns)
        table = table.filter(pc.equal(table["sample"], 0)).sort_by("prompt_id")
        tokens = pc.list_value_length(table["response_ids"]).to_pylist()
        rows = table.drop_columns(["response_ids"]).to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        problems.append(f"{path.relative_to(root)} cannot be read: {one_line(error)}")
        return {}
    return {
        (row["prompt_id"], row["prompt"]): Response(row["response"], count, bool(row["finished"]))
        for row, count in zip(rows, tokens, strict=True)
    }


def one_line(error: Exception) -> str:
    """The error's message on one line, cut at 200 characters."""
    return " ".join(str(error).split())[:200]
