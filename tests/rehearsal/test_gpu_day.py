"""`bench/gpu.sh` on a device that is not there: every part runs to its end, and leaves its rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cuda_standin
from bench import record
from bench.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
TRAVELS = 64 << 20  # bytes of the tree that a call takes along, with what .peers/1 adds
PEERS = 46 << 20
RECORDS = {
    "A": {"ceilings", "levers", "profile-step", "generate", "generate-many"},
    "B": {"head", "head-forward", "step"},
    "C": {"tune", "scaling"},
}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.skipif(cuda_standin.compiler() is None, reason="no C++ compiler")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("part", RECORDS)
def test_every_part_runs_from_a_tree_without_git(part: str, tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    for file in tracked_files():
        target = tree / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    path = [tree / "tests/support/standin_site", tree / "tests/support"]
    env = os.environ | {
        "PART": part, "SIZE": "small", "OUT": str(out), "PYTHON": sys.executable,
        "SITE": str(tmp_path / "site"), "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1", "MINUTES": "15", "BENCH_COMMIT": "abc1234",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "bench/gpu.sh"], cwd=tree, env=env, capture_output=True, text=True
    )
    states = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": status" in line)
    failed = {name: text for name, text in states.items() if not text.startswith("status 0")}
    failed.pop("counters", None)  # ncu is there where a GPU is
    log = (out / f"{part}.log").read_text()
    assert not failed and RECORDS[part] <= states.keys(), (done.stdout, done.stderr, log[-5000:])
    for name in RECORDS[part]:
        found = record.read(out / f"{name}.json")
        assert "partial" not in found and found["commit"] == "abc1234", name
        ours = [row for row in found["rows"] if str(row["name"]).startswith("comal")]
        assert all("why" not in row for row in ours), ours
    if part == "C":
        assert "killed in training" in log
        assert 0 <= json.loads((out / "run.json").read_text())["win_rate"]["mean"] <= 1


def test_the_tree_travels() -> None:
    size = sum(file.stat().st_size for file in tracked_files())
    assert size < TRAVELS - PEERS


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        ["bash", "bench/gpu.sh"], cwd=ROOT, env=os.environ | {"PART": "D"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr == "PART=D: expected A, B or C\n"


HEAD = ["--tokens", "128", "--hidden", "32", "--vocab", "128", "--repeat", "100000"]
ENDLESS = {  # a bench that has a row soon, and never ends
    "ceilings": ["--model", "tiny", "--step-tokens", "16", "--repeat", "2", "--sustain", "600"],
    "levers": ["--model", "tiny", "--pairs", "2", "--response", "8", "--repeat", "100000"],
    "head": [*HEAD, "--peers", "torch"],
    "scaling": ["--tokens", "128", "8388608", *HEAD[2:-1], "1", "--peers", "torch"],
    "generate": ["--model", "tiny", "--count", "1", "--tokens", "2", "--repeat", "100000"],
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("bench", ENDLESS)
def test_a_bench_that_is_killed_leaves_its_rows(bench: str, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    command = [sys.executable, "-m", "bench", bench, "--device", "cpu", *ENDLESS[bench]]
    process = subprocess.Popen([*command, "--json", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not out.is_file():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        time.sleep(0.3)  # into the next write, or out of it
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = record.read(out)
    assert found["partial"] and any("seconds" in row for row in found["rows"])


def test_records_from_elsewhere_are_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    (known,) = (ROOT / "bench/results/nvidia-h200").glob("*-27-step.json")
    stray = tmp_path / "stray.json"
    stray.write_text('{"schema": 1, "bench": "unheard"}')
    assert main(["adopt", str(known), str(stray)]) == 2
    assert "bench 'unheard' is unknown" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()  # none of them
    assert main(["adopt", str(known)]) == 0
    (place,) = (tmp_path / "results").rglob("*.json")
    assert place.name == known.name and place.parent.name == "nvidia-h200"
    assert place.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
