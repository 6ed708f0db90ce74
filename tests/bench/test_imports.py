"""Imports inside bench run one way: verbs, benches, what they use, what all stands on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
VERBS, USED = ("__main__", "documents", "run_all"), ("peers", "trainers", "measure", "render")
LAYER = {**dict.fromkeys(VERBS, 0), "benches": 1, **dict.fromkeys(USED, 2)}  # all others: 3


def name_of(path: Path) -> str:
    parts = path.relative_to(BENCH.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in BENCH.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    """Names of bench's files that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


GRAPH = {name: set(imported(path)) for name, path in FILES.items()}


def place(name: str) -> str:
    """A file's folder in bench, or the file itself at the top."""
    return name.split(".")[1] if "." in name else ""


def test_no_circles_between_files_or_folders() -> None:
    assert GRAPH["bench.__main__"] >= {"bench.documents", "bench.benches"}
    TopologicalSorter(GRAPH).prepare()
    folders: dict[str, set[str]] = {place(name): set() for name in GRAPH}
    for name, others in GRAPH.items():
        folders[place(name)] |= {place(other) for other in others} - {place(name)}
    TopologicalSorter(folders).prepare()


def test_nothing_imports_what_stands_above_it() -> None:
    upwards = [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if LAYER.get(place(name), 3) > LAYER.get(place(other), 3)
    ]
    assert upwards == []
