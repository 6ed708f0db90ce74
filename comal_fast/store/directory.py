"""The run directory: the one place that knows what its files and its phases are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError
from comal_fast.store.artefacts import Artefact, Folder, Json, Table, read_json, write_json
from comal_fast.store.metrics import Row, read_metrics
from comal_fast.store.shards import Shards

PHASES = {
    "generate": "sample K responses per prompt from the current policy",
    "judge": "the preference matrix of every prompt's samples",
    "pair": "choose the preference pairs",
    "logps": "log-probs of the reference and of the last iterate",
    "train": "the prox step to the next iterate",
    "evaluate": "held-out win rates of an iterate against the earlier ones",
    "diagnose": "signs of a failing run, on what was measured up to an iteration",
}
"""Every phase, in the order in which an iteration runs them, and what it does."""
BEFORE_TRAINING = ("generate", "judge", "pair", "logps")


class RunDirectory:
    """Paths, artefacts and readers of one run; nothing need be there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "env.json"
        self.state = self.path / "state.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.pictures = self.path / "report"
        self.oracle_cache = self.path / "oracle_cache.sqlite"
        self.lm_game = self.path / "lm_game.json"
        self.iterations_folder = self.path / "iterations"

    def __str__(self) -> str:
        return str(self.path)

    def iteration(self, number: int) -> IterationFolder:
        """The folder of the iteration that trains π_number; 0: of the initial policy."""
        return IterationFolder(self.iterations_folder / f"{number:04d}")

    def iterations(self) -> dict[int, IterationFolder]:
        """Number → folder of the iterations that have one, in order."""
        if not self.iterations_folder.is_dir():
            return {}
        found = (p for p in self.iterations_folder.iterdir() if p.is_dir())
        numbers = sorted(int(p.name) for p in found if re.fullmatch(r"[0-9]+", p.name))
        return {number: self.iteration(number) for number in numbers}

    def trained(self) -> list[int]:
        """The iterations, in order, whose model is there."""
        return [t for t, folder in self.iterations().items() if folder.model.exists()]

    def sampled(self) -> list[int]:
        """The iterates, in order, with held-out samples."""
        return [t for t, folder in self.iterations().items() if folder.eval_samples.exists()]

    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl, in the order in which they were written."""
        return read_metrics(self.metrics)

    def read_summary(self) -> dict[str, Any] | None:
        """What the end of the run wrote; None while there is none."""
        return read_json(self.summary) if self.summary.is_file() else None

    def result(self) -> int | None:
        """The iterate that the run ended with; None while it goes on."""
        summary = self.read_summary()
        return None if summary is None else int(summary["result"])

    def done(self) -> list[tuple[int, str]]:
        """(iteration, phase) of what is finished, in the order of state.json."""
        if not self.state.is_file():
            return []
        entries = (entry.split("/") for entry in read_json(self.state)["done"])
        return [(int(iteration), phase) for iteration, phase in entries]

    def note(self, phase: str, iteration: int) -> None:
        """Say in state.json that a phase is finished; nothing happens where it says so already."""
        done = self.done()
        if (iteration, phase) not in done:
            self.write_done([*done, (iteration, phase)])

    def write_done(self, done: list[tuple[int, str]]) -> None:
        """Write state.json anew."""
        write_json(self.state, {"done": [f"{t:04d}/{phase}" for t, phase in done]})


class IterationFolder:
    """iterations/NNNN: what the phases of one iteration write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = Table(path / "samples.parquet", "generate")
        self.judgments = Table(path / "judgments.parquet", "judge")
        self.pairs = Table(path / "pairs.parquet", "pair")
        self.logps = Table(path / "logps.parquet", "logps")
        self.model = Folder(path / "model", "train")
        self.checkpoint = Folder(path / "checkpoint", "train")
        self.eval_samples = Table(path / "eval_samples.parquet", "evaluate")
        self.evaluation = Json(path / "evaluation.json", "evaluate")
        self.pair_evaluation = Json(path / "pair_evaluation.json", "evaluate")
        self.diagnostics = Json(path / "diagnostics.json", "diagnose")
        self.probe = Table(path / "probe.parquet", "diagnose")

    def shards(self, artefact: Artefact, key: str) -> Shards:
        """What there is so far of an artefact that is being made."""
        return Shards(self.path / f"{artefact.path.stem}.shards", key)

    def finished(self) -> list[Artefact]:
        """The artefacts that are there, in the order of the phases."""
        every: list[Artefact] = [
            self.samples,
            self.judgments,
            self.pairs,
            self.logps,
            self.model,
            self.eval_samples,
            self.evaluation,
            self.pair_evaluation,
            self.diagnostics,
        ]
        return [artefact for artefact in every if artefact.exists()]

    def before_training(self) -> list[Artefact]:
        """What the phases before training write, there or not."""
        return [self.samples, self.judgments, self.pairs, self.logps]


def check_run(path: Path) -> RunDirectory:
    """A directory that a run wrote its configuration to. Raises InputError for any other."""
    directory = RunDirectory(path)
    if not directory.path.is_dir():
        raise InputError(f"{path}: no such run directory")
    if not directory.config.is_file():
        raise InputError(f"{path}: no config.yaml there, so it is not a run directory")
    return directory
