"""Run directories → entrants of a round robin, on the prompts that all of them held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comal_fast.artefacts import read_json, read_table, table_key
from comal_fast.compare.tournament import Entrant
from comal_fast.config import Config, load_saved

Held = dict[tuple[int, ...], tuple[str, list[str], float]]
"""Prompt tokens → (prompt, responses, mean tokens)."""


def load_entrants(
    runs: Sequence[Path], everything: bool
) -> tuple[list[Entrant], list[str], Config, int]:
    """(entrants, shared prompts, configuration of the first run, prompts of the largest run).

    Of each run the initial policy and its result, or with `everything` each iterate with held-out
    samples. What two runs have in common (the same samples) enters once. ValueError for what is no
    run directory, runs with different oracles, fewer than two entrants or shared prompts.
    """
    configs = [load_saved(run / "config.yaml") for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if config.oracle != configs[0].oracle:
            raise ValueError(
                f"{run}: its oracle differs from that of {runs[0]}; "
                "only runs under one oracle can be compared"
            )
    names = _names(runs)
    held: dict[str, Held] = {}
    seen: set[str] = set()
    for run, name in zip(runs, names, strict=True):
        for iterate, path in _samples(run, everything):
            key = table_key(path) or str(path)
            if key in seen:
                continue
            seen.add(key)
            held[_entrant_name(name, iterate, len(runs) == 1, "initial" in held)] = _read(path)
    if len(held) < 2:
        raise ValueError(f"{runs[0]}: fewer than two sampled iterates, nothing to compare")
    shared = [p for p in next(iter(held.values())) if all(p in other for other in held.values())]
    if len(shared) < 2:
        raise ValueError(
            f"{' '.join(map(str, runs))}: {len(shared)} held-out prompts in common, 2 are needed; "
            "use one seed and one data.prompts"
        )
    entrants = [
        Entrant(name, [own[p][1] for p in shared], np.array([own[p][2] for p in shared]))
        for name, own in held.items()
    ]
    texts = [next(iter(held.values()))[p][0] for p in shared]
    return entrants, texts, configs[0], max(map(len, held.values()))


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' own names; with their parents where those are the same."""
    short = [run.resolve().name for run in runs]
    if len(set(short)) == len(short):
        return short
    return [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]


def _entrant_name(run: str, iterate: int, alone: bool, initial_taken: bool) -> str:
    if iterate == 0 and not initial_taken:
        return "initial"
    return f"π_{iterate}" if alone else f"{run} π_{iterate}"


def _samples(run: Path, everything: bool) -> list[tuple[int, Path]]:
    found = {
        int(path.parent.name): path
        for path in sorted((run / "iterations").glob("[0-9]*/eval_samples.parquet"))
    }
    if not found:
        raise ValueError(f"{run}: no held-out samples there; run `comal-fast run` or `evaluate`")
    if everything:
        return list(found.items())
    summary = run / "summary.json"
    last = read_json(summary)["result"] if summary.is_file() else max(found)
    return [(t, path) for t, path in found.items() if t in (0, last)]


def _read(path: Path) -> Held:
    held: Held = {}
    for row in read_table(path).to_pylist():
        text, responses, tokens = held.setdefault(tuple(row["prompt_ids"]), (row["prompt"], [], 0))
        responses.append(row["response"])
        total = tokens + len(row["response_ids"])
        held[tuple(row["prompt_ids"])] = (text, responses, total)
    return {p: (text, rs, tokens / len(rs)) for p, (text, rs, tokens) in held.items()}
