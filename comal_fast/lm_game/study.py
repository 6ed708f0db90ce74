"""Several configurations, each with several seeds, on the same prompts, and a record of it.

The record holds, of every run and seed, the last iterate's duality gap, distance from Nash and leak
on every prompt, and the mean gap of every iterate; its tables and its picture are made from it.
"""

from __future__ import annotations

import gzip
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.errors import InputError
from comal_fast.lm_game.measure import Measured, measure
from comal_fast.statistics import Array, Interval
from comal_fast.statistics.seeds import Run, interval_over_seeds
from comal_fast.system.machine import versions
from comal_fast.system.terminal import note

DIGITS = 6
MEASURES = ("gap", "total_variation", "leak")


@dataclass(frozen=True)
class Study:
    """A record, read back."""

    content: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Of the runs, in the order in which they were given."""
        return [run["name"] for run in self.content["runs"]]

    @property
    def held_out(self) -> np.ndarray:
        """(prompts,) bool."""
        return np.array(self.content["held_out"])

    @property
    def families(self) -> list[str]:
        """Of games, in order of appearance."""
        return list(dict.fromkeys(self.content["families"]))

    def values(self, name: str, measure: str) -> Array:
        """(seeds, prompts) of one run's last iterates."""
        return np.array(self._run(name)[measure])

    def curve(self, name: str, held_out: bool) -> Array:
        """(seeds, T+1) mean gap over the prompts of every iterate."""
        return np.array(self._run(name)["curve_held_out" if held_out else "curve_train"])

    def interval(self, values: Array, prompts: np.ndarray) -> Interval:
        """Mean over seeds and those prompts, with a 95 % interval over both."""
        return interval_over_seeds(_as_runs(values[:, prompts]))

    def difference(self, name: str, other: str, measure: str, prompts: np.ndarray) -> Interval:
        """`name` minus `other`, paired by prompt; their seeds are independent."""
        one, two = self.values(name, measure), self.values(other, measure)
        return interval_over_seeds(_as_runs(one[:, prompts]), _as_runs(two[:, prompts]))

    def family(self, name: str) -> np.ndarray:
        """(prompts,) bool: the training prompts whose games are of that family."""
        same = np.array([family == name for family in self.content["families"]])
        return same & ~self.held_out

    def _run(self, name: str) -> dict[str, Any]:
        found = next((run for run in self.content["runs"] if run["name"] == name), None)
        if found is None:
            raise InputError(f"{name}: no such run in the record; it has {', '.join(self.names)}")
        return found


def play(configs: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> Study:
    """Run what is not finished, in OUTPUT_DIR/seed-N of each, and measure it.

    InputError where two configurations differ in their games or prompts.
    """
    from comal_fast.config import load_config
    from comal_fast.loop import run_all

    loaded = []
    for file in configs:
        folder = Path(load_config(file, overrides).output_dir)
        for seed in seeds:
            own = [*overrides, f"seed={seed}", f"output_dir={folder / f'seed-{seed}'}"]
            loaded.append((folder.name, load_config(file, own)))
    names = list(dict.fromkeys(name for name, _ in loaded))
    if len(names) < len(configs):
        raise InputError("output_dir: two configurations have a folder of the same name")
    found: dict[str, list[Measured]] = {name: [] for name in names}
    options: dict[str, Any] = {}
    for number, (name, config) in enumerate(loaded, 1):
        note(f"\nrun {number} of {len(loaded)}: {name}, seed {config.seed}")
        run_all(config)
        found[name].append(in_order(measure(config)))
        options[name] = config.algorithm.model_dump(mode="json")
    first = found[names[0]][0]
    for name, runs in found.items():
        if any(run.prompts != first.prompts for run in runs):
            raise InputError(f"{name}: its prompts are others than those of {names[0]}")
    content = {
        "prompts": list(first.prompts),
        "families": [played.family for played in first.games],
        "sizes": [len(played.game.names) for played in first.games],
        "held_out": first.held_out.tolist(),
        "seeds": list(seeds),
        "command": shlex.join(["comal-fast", "lm-game", "study", *configs, *overrides]),
        "versions": versions(),
        "runs": [
            {"name": name, "algorithm": options[name], **numbers(found[name])} for name in names
        ],
    }
    return Study(content)


def in_order(run: Measured) -> Measured:
    """The same with its prompts by text, whatever order the seed gave them; training ones first."""
    order = sorted(range(len(run.prompts)), key=lambda i: (run.held_out[i], run.prompts[i]))
    return replace(
        run,
        prompts=tuple(run.prompts[i] for i in order),
        games=tuple(run.games[i] for i in order),
        nash=run.nash[order],
        policies=run.policies[:, order],
        held_out=run.held_out[order],
        gap=run.gap[:, order],
    )


def numbers(runs: Sequence[Measured]) -> dict[str, Any]:
    """What the record holds of one configuration's runs, a list a seed."""
    held = runs[0].held_out
    return {
        "seconds": [round(run.seconds, 1) for run in runs],
        "trained_tokens": [run.trained_tokens for run in runs],
        "gap": [_rounded(run.gap[-1]) for run in runs],
        "total_variation": [_rounded(run.total_variation[-1]) for run in runs],
        "leak": [_rounded(run.leak[-1]) for run in runs],
        "curve_train": [_rounded(run.gap[:, ~held].mean(axis=1)) for run in runs],
        "curve_held_out": [_rounded(run.gap[:, held].mean(axis=1)) for run in runs],
    }


def to_bytes(study: Study, path: str) -> bytes:
    """The record as JSON, compressed where the name ends in .gz; the same bytes each time."""
    text = json.dumps(study.content).encode() + b"\n"
    return gzip.compress(text, mtime=0) if path.endswith(".gz") else text


def read(path: str | Path) -> Study:
    """A record from its file. InputError where it is none."""
    try:
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
        found = json.loads(content)
        assert found["runs"] and found["prompts"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{path}: no record of `comal-fast lm-game study`") from None
    return Study(found)


def trained_tokens(study: Study, name: str) -> float | None:
    """Return the mean over seeds of the tokens that a run trained on; None in older records."""
    run = next(run for run in study.content["runs"] if run["name"] == name)
    counts = run.get("trained_tokens")
    return None if counts is None else float(np.mean(counts))


def _as_runs(values: Array) -> list[Run]:
    """Return one mapping from prompt to value per row of (seeds, prompts) values."""
    return [dict(enumerate(row)) for row in values]


def _rounded(values: Array) -> list[float]:
    return np.round(values, DIGITS).tolist()
