"""Two distributions of one repository: what their wheels and sdists hold and ask for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import comal_fast
import comal_kernels

REPO = Path(__file__).resolve().parents[2]
BUILD = (
    "import sys; from setuptools import build_meta; "
    "print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
)


def build(source: Path, what: str, target: Path) -> Path:
    """`build_wheel` or `build_sdist` of a folder, as pip does, by the setuptools of this one."""
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", BUILD, what, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def needs(wheel: Path) -> list[str]:
    """What it asks for, extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        found = message_from_string(archive.read(name).decode()).get_all("Requires-Dist") or []
    return [line for line in found if "extra ==" not in line]


def unpacked(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building leaves folders behind."""
    copy = tmp_path_factory.mktemp("checkout") / "repository"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPO, copy, ignore=ignored)
    return copy


def test_one_version() -> None:
    assert comal_fast.__version__ == comal_kernels.__version__


def test_the_library_needs_torch_triton_numpy(checkout: Path, tmp_path: Path) -> None:
    wheel = build(checkout / "kernels", "build_wheel", tmp_path)
    assert sorted(line.split(">")[0].split(";")[0] for line in needs(wheel)) == [
        "numpy",
        "torch",
        "triton",
    ]
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"comal_kernels"}
    assert "comal_kernels/py.typed" in names and any("licenses/LICENSE" in n for n in names)


def test_the_trainer_takes_the_folder_beside_it_or_the_published_version(
    checkout: Path, tmp_path: Path
) -> None:
    beside = build(checkout, "build_wheel", tmp_path / "checkout")
    urls = [Requirement(line).url for line in needs(beside)]
    assert [url for url in urls if url] == [(checkout / "kernels").as_uri()]
    sdist = build(checkout, "build_sdist", tmp_path / "release")
    released = build(unpacked(sdist), "build_wheel", tmp_path / "release")
    assert f"comal-kernels=={comal_fast.__version__}" in needs(released)
    assert not any("@" in line for line in needs(released))
    for wheel in (beside, released):
        names = zipfile.ZipFile(wheel).namelist()
        assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"comal_fast"}
        assert {"comal_fast/data/prompts.jsonl", "comal_fast/report/report.html"} <= {*names}


@pytest.mark.slow
def test_sdists_install_and_run(checkout: Path, tmp_path: Path) -> None:
    """Wheels of both sdists in a folder of their own, in front of everything installed."""
    wheels = []
    for source in (checkout / "kernels", checkout):
        sdist = build(source, "build_sdist", tmp_path / source.name)
        wheels.append(build(unpacked(sdist), "build_wheel", tmp_path / source.name))
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, *map(str, wheels)], check=True, capture_output=True)
    code = (
        "import comal_fast, comal_kernels; from comal_fast.cli import main; "
        "print(comal_fast.__file__, comal_kernels.__file__); "
        "main(['config', 'explain', 'oracle.name']); main(['game', '--json', 'g.json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.split()[0].startswith(str(target)), done.stderr
    assert done.stdout.split()[1].startswith(str(target)) and (tmp_path / "g.json").is_file()
