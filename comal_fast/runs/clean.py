"""Frees the disk of a finished run: the weights of iterates that are not to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comal_fast.errors import InputError
from comal_fast.runs.listing import disk, is_taken
from comal_fast.statistics import to_interval
from comal_fast.store.directory import RunDirectory, check_run
from comal_fast.store.files import remove, write_json

KEEP = ("best", "last")


@dataclass(frozen=True)
class Cleaning:
    """What would go, and what stays."""

    directory: RunDirectory
    kept: tuple[int, ...]
    """Iterates whose weights stay; π_0's always do, where the run holds them."""
    freed: tuple[int, ...]
    folders: tuple[Path, ...]
    bytes: int

    def execute(self) -> None:
        """Delete the folders. From then on the run can be read, and not gone on with."""
        write_json(self.directory.cleaned, {"freed": list(self.freed), "kept": list(self.kept)})
        for folder in self.folders:
            remove(folder)


def plan(run_dir: Path, keep: Sequence[str]) -> Cleaning:
    """What `keep` (best, last, or numbers of iterates) leaves to be deleted of a finished run.

    Samples, judgements, log-probs, evaluations and metrics always stay. InputError for a run that
    is at work or not finished, and for an iterate that it has not.
    """
    directory = check_run(run_dir)
    result = directory.result()
    if is_taken(run_dir):
        raise InputError(f"{run_dir}: a process is at work in it")
    if result is None:
        raise InputError(
            f"{run_dir}: not finished, and going on takes its weights and checkpoints; finish it, "
            "or delete the folder"
        )
    trained = directory.trained()
    kept = sorted({_iterate(word, directory, trained, result) for word in keep})
    freed = [t for t in trained if t not in kept]
    folders = [directory.iteration(t).model.path for t in freed]
    for folder in directory.iterations().values():
        folders += [c.path for c in folder.checkpoints()]
        folders += [p for p in (folder.failed.path, *folder.path.glob("*.shards")) if p.exists()]
        folders += [p for p in folder.of_killed() if p not in folders]
    return Cleaning(
        directory,
        tuple(kept),
        tuple(freed),
        tuple(folders),
        sum(disk(folder)[0] for folder in folders),
    )


def _iterate(word: str, directory: RunDirectory, trained: Sequence[int], result: int) -> int:
    if word == "last":
        return result
    if word == "best":
        return _best(directory, result)
    if not word.isdecimal() or int(word) not in (0, *trained):
        known = ", ".join(map(str, trained)) or "none"
        raise InputError(
            f"--keep {word}: expected best, last or an iterate whose weights are there: {known}"
        )
    return int(word)


def _best(directory: RunDirectory, result: int) -> int:
    """The iterate with the highest held-out win rate against π_0; the result without any."""
    rates = {}
    for t, folder in directory.iterations().items():
        if t and folder.evaluation.exists() and folder.model.exists():
            found = to_interval(folder.evaluation.read()["win_rates"].get("0"))
            if found is not None:
                rates[t] = found.mean
    return max(rates, key=lambda t: (rates[t], t)) if rates else result
