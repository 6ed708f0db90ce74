"""The runs below a folder: state, settings that differ, result, size."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from comal_fast.config.load import leaves
from comal_fast.errors import InputError
from comal_fast.statistics import Interval, to_interval
from comal_fast.store.directory import PHASES, RunDirectory
from comal_fast.store.seal import Damaged

MOST, WIDEST = 4, 16  # differing settings that a row shows; characters of a value
DEPTH = 6  # folders below the given one that are looked into
_NEVER = ("output_dir",)


@dataclass(frozen=True)
class Entry:
    """One run as it is listed."""

    path: str
    state: str
    settings: dict[str, Any]
    """Option → value, of those in which the listed runs differ."""
    result: int | None
    win_rate: Interval | None
    bytes: int
    changed: datetime
    """When its newest file was written: local time with its zone."""

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        rate = self.win_rate
        return {
            "path": self.path,
            "state": self.state,
            "settings": self.settings,
            "result": self.result,
            "win_rate": rate and {"mean": rate.mean, "ci95": [rate.low, rate.high]},
            "bytes": self.bytes,
            "changed": self.changed.isoformat(timespec="seconds"),
        }


def find_runs(folder: Path) -> list[RunDirectory]:
    """The run directories in and below it, by path. InputError where it is no folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return [RunDirectory(path) for path in sorted(_below(folder, DEPTH))]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
        return
    if depth:
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _below(child, depth - 1)


def entries(folder: Path) -> list[Entry]:
    """Of all runs below it. InputError where there is none."""
    runs = find_runs(folder)
    if not runs:
        raise InputError(f"{folder}: no run directory in it or below")
    options = [_options(run) for run in runs]
    keys = dict.fromkeys(key for own in options for key in own)
    differing = [
        key
        for key in keys
        if key not in _NEVER and len({repr(own.get(key)) for own in options}) > 1
    ]
    found = []
    for run, own in zip(runs, options, strict=True):
        settings = {key: own.get(key) for key in differing}
        found.append(_entry(run, folder, settings, own))
    return found


def _options(run: RunDirectory) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(leaves(tree)) if isinstance(tree, dict) else {}


def _entry(
    run: RunDirectory, folder: Path, settings: dict[str, Any], options: dict[str, Any]
) -> Entry:
    try:
        summary = run.read_summary()
    except (Damaged, InputError, ValueError):
        summary = None
    size, newest = disk(run.path)
    return Entry(
        str(run.path.relative_to(folder)) if run.path != folder else run.path.name,
        state(run, summary, options),
        settings,
        None if summary is None else summary["result"],
        to_interval((summary or {}).get("win_rate")),
        size,
        datetime.fromtimestamp(newest).astimezone(),
    )


def state(run: RunDirectory, summary: dict[str, Any] | None, options: dict[str, Any]) -> str:
    """`finished`, `ended by …`, or how far it is: `running` while a process has it."""
    total = options.get("algorithm.iterations", "?")
    if summary is not None:
        ended = summary.get("ended")
        return f"ended by {ended['by']}" if ended else "finished"
    started = {t: f for t, f in run.iterations().items() if t and f.finished()}
    how = "running" if is_taken(run.path) else "stopped"
    if not started:
        return f"{how}, nothing finished"
    last = max(started)
    done = [a.phase for a in started[last].finished()]
    phase = max(done, key=list(PHASES).index)
    return f"{how}, iteration {last} of {total}: {phase} done"


def is_taken(path: Path) -> bool:
    """Whether a process holds the run directory at this moment."""
    try:
        lock = (path / ".lock").open("r")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def disk(path: Path) -> tuple[int, float]:
    """(bytes on disk, when the newest file was written); a file with two names counts once."""
    seen: set[tuple[int, int]] = set()
    total, newest = 0, path.stat().st_mtime
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:  # it has just been replaced
                continue
            newest = max(newest, found.st_mtime) if name != ".lock" else newest
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total, newest


def size_text(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _short(key: str, value: Any) -> str:
    """An option without its group; of a path its end."""
    text = str(value).rstrip("/").rpartition("/")[2] if isinstance(value, str) else str(value)
    return f"{key.rpartition('.')[2]}={text if len(text) <= WIDEST else text[: WIDEST - 1] + '…'}"


def table(found: Sequence[Entry]) -> Table:
    """A row a run; of the settings that differ those that are not what most runs have."""
    usual = {
        key: Counter(repr(entry.settings[key]) for entry in found).most_common(1)[0][0]
        for key in found[0].settings
    }
    result = Table(box=None, pad_edge=False)
    for name in ("run", "state", "differs in"):
        result.add_column(name, overflow="fold")
    for name in ("result", "win rate", "disk", "changed"):
        result.add_column(name, justify="right")
    for entry in found:
        rate = entry.win_rate
        own = [
            _short(k, v) for k, v in entry.settings.items() if v is not None and repr(v) != usual[k]
        ]
        if len(own) > MOST:
            own[MOST - 1 :] = [f"and {len(own) - MOST + 1} more"]
        result.add_row(
            entry.path,
            entry.state,
            "\n".join(own),
            "–" if entry.result is None else f"π_{entry.result}",
            f"{rate.mean:.1%}\n[{rate.low:.1%}, {rate.high:.1%}]" if rate else "–",
            size_text(entry.bytes),
            f"{entry.changed:%Y-%m-%d\n%H:%M %Z}",
        )
    return result
