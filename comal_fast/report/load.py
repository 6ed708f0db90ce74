"""A run directory, finished or not, as typed records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from comal_fast.errors import InputError
from comal_fast.report.samples import BeforeAfter, load_comparisons, one_line
from comal_fast.statistics import Array, Interval, number, to_interval
from comal_fast.store.artefacts import Json
from comal_fast.store.directory import IterationFolder, check_run
from comal_fast.store.seal import Damaged

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """One iterate on the held-out prompts; lengths and repetition hold one entry a response."""

    iterate: int
    n_prompts: int | None
    win_rates: dict[int, Interval]
    """Against each earlier iterate."""
    controlled: dict[int, Interval]
    """The same at equal length, where the lengths are comparable."""
    not_comparable: dict[int, str]
    """Why there is no win rate at equal length, where there is none."""
    wins: dict[int, Array]
    """The same by prompt."""
    length: float
    lengths: Array
    repetition: float
    repetitions: Array
    finished: float
    kl_to_initial: Interval | None
    kl_to_reference: Interval | None


@dataclass(frozen=True)
class Diagnosis:
    """One sign of failure. `action`: what the configuration does about it."""

    iteration: int
    name: str
    action: str
    text: str


@dataclass(frozen=True)
class Run:
    """What a run directory holds so far."""

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    summary: dict[str, Any]
    """Empty while the run goes on."""
    rows: list[Row]
    """metrics.jsonl, each (phase, iteration, epoch, step) once."""
    evaluations: dict[int, Evaluation]
    diagnosed: list[int]
    """The iterations that were looked at for signs of failure."""
    diagnoses: list[Diagnosis]
    compared: int | None
    """The iterate that `comparisons` show beside the initial policy."""
    comparisons: list[BeforeAfter]
    artefacts: dict[int, list[str]]
    """Finished artefacts of each iteration, in the order of the phases."""
    problems: list[str]
    """One line a file that is there and cannot be read."""

    def option(self, key: str, default: Any = None) -> Any:
        """The option with dotted name `key`."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def phase(self, name: str) -> list[Row]:
        """The rows of one phase, by iteration."""
        return sorted((r for r in self.rows if r["phase"] == name), key=lambda r: r["iteration"])


def load_run(path: Path) -> Run:
    """Read a run directory. InputError if it does not exist or holds no readable config.yaml."""
    directory = check_run(path)
    config = _config(directory.config)
    problems: list[str] = []
    folders = directory.iterations()
    evaluations = {}
    for t, folder in folders.items():
        content = _json(folder.evaluation.path, directory.path, problems)
        if content:
            evaluations[t] = _evaluation(t, content)
    diagnosed, diagnoses = _diagnoses(directory.path, folders, problems)
    compared, comparisons = load_comparisons(directory, problems)
    return Run(
        path=directory.path,
        config=config,
        env=_json(directory.environment, directory.path, problems),
        summary=_json(directory.summary.path, directory.path, problems),
        rows=[*directory.settled([dict(r) for r in _metrics(directory.metrics, problems)])],
        evaluations=evaluations,
        diagnosed=diagnosed,
        diagnoses=diagnoses,
        compared=compared,
        comparisons=comparisons,
        artefacts={t: [a.path.name for a in f.finished()] for t, f in folders.items()},
        problems=problems,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of options")
    return tree


def _json(path: Path, root: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a file; {} where there is no file or, with a line in `problems`, no object."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.relative_to(root)} cannot be read: {one_line(error)}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.relative_to(root)} holds no JSON object")
        return {}
    if isinstance(content.get("key"), str):
        try:
            Json(path, "").verify()
        except Damaged as error:
            problems.append(f"{path.relative_to(root)} is damaged ({error.why}), left out")
            return {}
    return content


def _metrics(path: Path, problems: list[str]) -> list[Row]:
    """The rows in a file; a repeated (phase, iteration, epoch, step) counts once, the last time."""
    if not path.is_file():
        return []
    rows: dict[tuple[Any, ...], Row] = {}
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = (str(row["phase"]), int(row["iteration"]), row.get("epoch"), row.get("step"))
            rows[key] = {**row, "phase": key[0], "iteration": key[1]}
        except (ValueError, TypeError, KeyError, AttributeError):
            if i < len(lines):  # a last line without its newline is being written
                problems.append(f"{path.name}: line {i} is no row of metrics, left out")
    return list(rows.values())


def _evaluation(iterate: int, content: dict[str, Any]) -> Evaluation:
    length, repetition = _dict(content, "response_length"), _dict(content, "repetition")
    against = {
        int(key): value
        for key, value in _dict(content, "win_rates").items()
        if key.isdigit() and isinstance(value, dict)
    }
    rates = {t: rate for t, v in against.items() if (rate := to_interval(v)) is not None}
    controlled = {
        t: rate
        for t, value in against.items()
        if (rate := to_interval(value.get("length_controlled"))) is not None
    }
    notes = {t: _dict(value, "length_controlled").get("note") for t, value in against.items()}
    n_prompts = content.get("n_prompts")
    return Evaluation(
        iterate=iterate,
        n_prompts=n_prompts if isinstance(n_prompts, int) else None,
        win_rates=rates,
        controlled=controlled,
        not_comparable={t: note for t, note in notes.items() if isinstance(note, str)},
        wins={t: _numbers(value.get("values")) for t, value in against.items()},
        length=number(length.get("mean")),
        lengths=_numbers(length.get("histogram")),
        repetition=number(repetition.get("mean")),
        repetitions=_numbers(repetition.get("values")),
        finished=number(content.get("finished")),
        kl_to_initial=to_interval(content.get("kl_to_initial")),
        kl_to_reference=to_interval(content.get("kl_to_reference")),
    )


def _diagnoses(
    root: Path, folders: dict[int, IterationFolder], problems: list[str]
) -> tuple[list[int], list[Diagnosis]]:
    """(iterations that were checked, what fired)."""
    checked, fired = [], []
    for t, folder in folders.items():
        content = _json(folder.diagnostics.path, root, problems)
        if not isinstance(content.get("findings"), list):
            continue
        checked.append(t)
        for found in content["findings"]:
            fields = [str(found.get(key, "")) for key in ("name", "action", "text")]
            fired.append(Diagnosis(t, *fields))
    return checked, fired


def _dict(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> Array:
    values = np.array([number(v) for v in value] if isinstance(value, list) else [], dtype=float)
    return values[np.isfinite(values)]
