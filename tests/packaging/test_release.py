"""What a release promises: one changelog section a version, and bounds that were tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from comal_fast import __version__

ROOT = Path(__file__).parents[2]


def pinned(file: str) -> dict[str, Version]:
    """Package → version, of those that a file of constraints fixes."""
    lines = (ROOT / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_name(name): Version(version) for name, version in pairs}


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> list[Requirement]:
    """What both distributions need to run."""
    trainer = re.findall(r'"([a-z]+>=[0-9.]+)"', (ROOT / "setup.py").read_text())
    text = (ROOT / "kernels/pyproject.toml").read_text()
    library = re.findall(r'"((?:torch|triton|numpy)>=[0-9.]+)', text)
    assert len(trainer) > 10 and len(library) == 3
    return [Requirement(text) for text in sorted({*trainer, *library})]


@pytest.mark.parametrize("need", required(), ids=str)
def test_bounds(need: Requirement) -> None:
    """The lowest version that is allowed is the one that `make lowest` runs; the newest fits."""
    lowest = pinned("constraints-lowest.txt")[_name(need.name)]
    (bound,) = (Version(each.version) for each in need.specifier)
    assert lowest in need.specifier
    assert lowest.release[: len(bound.release)] == bound.release
    assert pinned("constraints.txt")[_name(need.name)] in need.specifier


def test_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"(?m)^## (\S+)(?: \((.*)\))?$", text)
    assert headings[0][0] == __version__
    assert all(re.fullmatch(r"(unreleased|\d{4}-\d\d-\d\d)?", when) for _, when in headings)
    versions = [Version(version) for version, _ in headings]
    assert versions == sorted(set(versions), reverse=True)
    newest = text.split("\n## ")[1]
    assert newest.count("\n- ") > 3
