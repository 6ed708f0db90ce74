"""Imports inside the loss library run one way, between files and between folders."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import comal_kernels

ROOT = Path(comal_kernels.__file__).parent
FILES = {
    ".".join(("comal_kernels", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}


def imported(path: Path) -> Iterator[str]:
    """The library's files that one imports, also late ones inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = (f"{node.module}.{name.name}" for name in node.names)
            yield from (x for x in (node.module, *names) if x in FILES)


def test_no_circles() -> None:
    files = {name: set(imported(path)) for name, path in FILES.items()}
    assert len(files) > 20 and sum(map(len, files.values())) > 40
    list(TopologicalSorter(files).static_order())
    folders: dict[Path, set[Path]] = {}
    for name, others in files.items():
        folder = FILES[name].parent
        into = {FILES[other].parent for other in others} - {folder, ROOT}
        if folder != ROOT:
            folders.setdefault(folder, set()).update(into)
    list(TopologicalSorter(folders).static_order())
    engines = {ROOT / "engines", ROOT / "engines" / "triton"}
    assert all(folders[folder] <= engines for folder in engines)
