"""The run directory: the one place that knows what its files and its phases are called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError
from comal_fast.store.artefacts import Artefact, Folder, Json, Table, moved_away
from comal_fast.store.files import TEMPORARY, read_json
from comal_fast.store.metrics import Row, read_metrics, read_rows, write_metrics
from comal_fast.store.seal import Damaged
from comal_fast.store.shards import Shards
from comal_fast.system.terminal import console

PHASES = ("generate", "judge", "pair", "logps", "train", "evaluate", "diagnose")
"""Every phase, in the order in which an iteration runs them."""
BEFORE_TRAINING = ("generate", "judge", "pair", "logps")


class RunDirectory:
    """Paths, artefacts and readers of one run; nothing need be there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "env.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = Json(self.path / "summary.json", "run")
        self.report = self.path / "report.html"
        self.pictures = self.path / "report"
        self.logging = self.path / "logging"
        self.progress = self.path / "progress.json"
        self.oracle_cache = self.path / "oracle_cache.sqlite"
        self.lm_game = self.path / "lm_game.json"
        self.cleaned = self.path / "cleaned.json"
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
        return self.settled(read_metrics(self.metrics))

    def settled(self, rows: list[Row]) -> list[Row]:
        """These rows, but those of finished phases as their own logs have them."""
        known = self._finished_rows()
        if _by_phase(rows, known) == {own: _by_phase(r, [own])[own] for own, r in known.items()}:
            return rows
        order = {phase: i for i, phase in enumerate(PHASES)}
        others = [row for row in rows if _own(row) not in known]
        whole = [*others, *(row for some in known.values() for row in some)]
        return sorted(whole, key=lambda r: (r["iteration"], order.get(r["phase"], len(order))))

    def restore_metrics(self) -> None:
        """Where metrics.jsonl and the finished phases' own logs differ, let the whole one win."""
        rows, torn = read_rows(self.metrics)
        for log, key, own in self._logs():
            logged = [row for row in rows if _own(row) == own]
            if log.exists() and not log.holds(key) and logged:
                log.write({"rows": logged}, key)
        right = self.settled(rows)
        if right is not rows and self.metrics.exists():
            aside = Json(self.metrics, "run").set_aside()
            console.print(
                f"  [yellow]![/] {self.metrics}: not what was logged; set aside as {aside.name}, "
                "and made anew",
                soft_wrap=True,
            )
        if right is not rows or torn:
            write_metrics(self.metrics, right)

    def _logs(self) -> Iterator[tuple[Json, str, tuple[str, int]]]:
        """(log, key, (phase, iteration)) of every finished artefact; 0.1's have none."""
        for iteration, folder in self.iterations().items():
            for artefact in folder.finished():
                with suppress(Damaged):  # it is made anew, or named, by who needs it
                    if key := artefact.key():
                        yield folder.log(artefact), key, (artefact.phase, iteration)

    def _finished_rows(self) -> dict[tuple[str, int], list[Row]]:
        """(phase, iteration) → what it logged, of those that are finished and say so."""
        found: dict[tuple[str, int], list[Row]] = {}
        for log, key, own in self._logs():
            with suppress(Damaged):
                if log.key() == key and (rows := log.read()["rows"]):
                    found.setdefault(own, []).extend(rows)
        return found

    def read_summary(self) -> dict[str, Any] | None:
        """What the end of the run wrote; None while there is none."""
        if not self.summary.exists():
            return None
        content = read_json(self.summary.path)
        return self.summary.read() if "key" in content else content  # 0.1's has none

    def result(self) -> int | None:
        """The iterate that the run ended with; None while it goes on."""
        summary = self.read_summary()
        return None if summary is None else int(summary["result"])

    def chosen(self, iterate: int | None) -> int:
        """`iterate`, or None for the run's result. InputError where it has none yet."""
        found = self.result() if iterate is None else iterate
        if found is None:
            raise InputError(
                f"{self.summary.path}: no such file, the run has no result; give --iterate"
            )
        return found


def _own(row: Row) -> tuple[str, int]:
    return row["phase"], row["iteration"]


def _by_phase(rows: list[Row], wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The rows of each phase, as text: NaN equals NaN there."""
    found: dict[tuple[str, int], list[Row]] = {own: [] for own in wanted}
    for row in rows:
        if _own(row) in found:
            found[_own(row)].append(row)
    return {own: json.dumps(some, sort_keys=True) for own, some in found.items()}


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
        self.failed = Folder(path / "failed", "train")
        self.eval_samples = Table(path / "eval_samples.parquet", "evaluate")
        self.evaluation = Json(path / "evaluation.json", "evaluate")
        self.pair_evaluation = Json(path / "pair_evaluation.json", "evaluate")
        self.diagnostics = Json(path / "diagnostics.json", "diagnose")
        self.probe = Table(path / "probe.parquet", "diagnose")

    def shards(self, artefact: Artefact, key: str) -> Shards:
        """What there is so far of an artefact that is being made."""
        return Shards(self.path / f"{artefact.path.stem}.shards", key)

    def checkpoints(self) -> list[Folder]:
        """The checkpoint and those kept before it that are there, the newest first.

        The last is one that a process was killed while replacing.
        """
        found = (re.fullmatch(r"checkpoint-(\d+)", p.name) for p in self.path.glob("checkpoint-*"))
        older = sorted(int(name[1]) for name in found if name)
        replaced = Folder(moved_away(self.checkpoint.path), "train")
        every = (self.checkpoint, *map(self._earlier, older), replaced)
        return [f for f in every if f.exists()]

    def of_killed(self) -> list[Path]:
        """Temporary files and folders that a process which was killed has left."""
        return sorted(p for name in TEMPORARY for p in self.path.glob(name.format("*")))

    def make_room(self, keep: int) -> None:
        """Before a checkpoint is written: move the last ones on, of which `keep` − 1 stay."""
        for number in range(keep - 1, 0, -1):
            newer = self._earlier(number - 1)
            if newer.exists():
                self._earlier(number).discard()
                newer.path.rename(self._earlier(number).path)

    def _earlier(self, number: int) -> Folder:
        return Folder(self.path / f"checkpoint-{number}", "train") if number else self.checkpoint

    def log(self, artefact: Artefact) -> Json:
        """The rows that an artefact's phase logged, sealed with its key: `{"rows": […]}`."""
        return Json(self.path / "metrics" / f"{artefact.path.stem}.json", artefact.phase)

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
