"""One schema for every result: what ran, on what, in which versions, from which commit.

{"schema": 1, "bench", "date", "command", "commit", "device", "versions", "shape", "rows", …}:
`bench` is one of the bench's `records`, `shape` names the sizes and dtypes, `rows` one entry a
contender (or part), times in seconds, sizes in bytes. A row without a time says why in `why`.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.options import AUTO
from comal_fast.errors import InputError

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PACKAGES = (
    "torch", "triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "quack-kernels",
    "verl", "flash-attn", "nvidia-cutlass-dsl",
)  # fmt: skip
Record = dict[str, Any]
Row = dict[str, Any]  # one of a record's `rows`


def new(bench: str, device: torch.device, **content: Any) -> Record:
    """A record of `content`, with device, versions, commit, command and date."""
    return {
        "bench": bench,
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "commit": _commit(),
        "device": describe(device),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        **content,
    }


def reason(error: BaseException) -> str:
    """An exception in one line: the `why` of a row without a time."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(device: torch.device) -> dict[str, Any]:
    """A device's name, folder of its results, memory in bytes, threads or multiprocessors."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name = found.name
        return {
            "kind": "cuda",
            "name": name,
            "folder": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
            "memory": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)),
        }
    threads = torch.get_num_threads()
    return {
        "kind": "cpu",
        "name": _processor(),
        "folder": f"cpu-{threads}-cores",
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _commit() -> str | None:
    """Return the commit, with + where the tree differs from it.

    Outside a checkout it is what BENCH_COMMIT says, or None.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", ".", ":!bench/results"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # no git
        return os.environ.get("BENCH_COMMIT")
    if head.returncode != 0:
        return os.environ.get("BENCH_COMMIT")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def place(record: Record, suffix: str, results: Path | None = None) -> Path:
    """The standing place: bench/results/<device>/<date>-<bench><suffix>."""
    folder = (results or RESULTS) / record["device"]["folder"]
    return folder / f"{record['date']}-{record['bench']}{suffix}"


def write(record: Record, out: Path, said: bool = True) -> None:
    """Write it to `out`, or to the standing place (AUTO), and say where.

    Whoever is killed meanwhile leaves the file as it was.
    """
    out = _standing(record, ".json") if out is AUTO else out
    made = out.with_name(f".{out.name}.{os.getpid()}")
    made.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    made.replace(out)
    if said:
        print(f"record: {_shown(out)}")


def write_picture(record: Record, png: bytes, out: Path) -> None:
    """Write it to `out`, or to the standing place (AUTO)."""
    out = _standing(record, ".png") if out is AUTO else out
    out.write_bytes(png)
    print(f"plot: {_shown(out)}")


def read(path: Path) -> Record:
    """The record in a file. InputError where the file is none of this schema."""
    try:
        record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: can't be read as a record: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a record of schema {SCHEMA}; run the bench again")
    return record


def newest(bench: str, folder: str, results: Path | None = None) -> Record | None:
    """The newest record of a bench on the device with that results folder."""
    files = sorted((results or RESULTS).joinpath(folder).glob(f"????-??-??-{bench}.json"))
    return read(files[-1]) if files else None


def _standing(record: Record, suffix: str) -> Path:
    path = place(record, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
