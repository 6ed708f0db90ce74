"""Every kernel compiles for GPUs that are not here: no spills, and matrix instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from comal_kernels.engines.triton import tuning

REPO = Path(__file__).resolve().parents[2]
MATRIX = dict.fromkeys((80, 86, 89, 120), "HMMA") | {90: "HGMMA", 100: "UTCHMMA"}
MATCHES = [
    "partial_kernel bf16 .*bias=0 softcap=0|soften_kernel bf16 .*bias=0 softcap=0 store=1|combine",
    "(partial|soften)_kernel bf16 [0-9].*bias=1 softcap=1.*(odd|even)$"
    "|partial_kernel fp32 .*bias=1 softcap=1 odd|_kernel bf16 bias=1 softcap=1.*odd"
    "|statistics_kernel fp32 bias=1 softcap=1.*odd",
]


def start(arch: int, match: str, cache: Path) -> subprocess.Popen[str]:
    """The compiler in a process of its own: kernels here may be bound to the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    cache.mkdir(exist_ok=True)
    out = cache / "record.json"
    command = [sys.executable, "-m", "bench", "compile", "--arch", str(arch), "--match", match]
    command += ["--json", str(out)]
    return subprocess.Popen(
        command, env=env, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def spilled(arch: int) -> int:
    """Bytes that may be: Triton 3.6 spills up to 56 in a few configurations, of sm_90 none."""
    import triton

    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    return 64 if old and arch != 90 else 0


def check(arch: int, text: str) -> int:
    rows = json.loads(text)["rows"]
    for row in rows:
        label = f"{row['kernel']} {row['config']} sm_{arch}"
        assert row["spill_bytes"] <= spilled(arch), f"{label} spills {row['spill_bytes']} bytes"
        assert row["registers"] <= 255, label
        assert row["shared_bytes"] <= tuning.SHARED_MEMORY[arch], label
        product = row["kernel"] in ("partial_kernel", "soften_kernel")
        if product and not row["config"].startswith("fp32"):
            assert row["matrix_instructions"].get(MATRIX[arch], 0) > 0, label
    return len(rows)


def compile_all(arch: int, matches: list[str], cache: Path) -> int:
    places = [cache / str(i) for i in range(len(matches))]
    running = [start(arch, *each) for each in zip(matches, places, strict=True)]
    for process in running:
        _, err = process.communicate()
        assert process.returncode in ((0, 1) if spilled(arch) else (0,)), err[-2000:]
    return sum(check(arch, (place / "record.json").read_text()) for place in places)


@pytest.mark.parametrize(
    "arch",
    [
        arch if arch == 90 else pytest.param(arch, marks=[pytest.mark.slow, pytest.mark.nightly])
        for arch in sorted(tuning.FORWARD)
    ],
)
def test_the_plainest_and_the_fullest(arch, tmp_path) -> None:
    """All the others: `python -m bench compile --arch N`, minutes for each."""
    assert compile_all(arch, MATCHES, tmp_path) >= 16


@pytest.mark.parametrize(
    ("device", "table"),
    [(80, 80), (86, 86), (87, 86), (89, 89), (90, 90), (100, 100), (103, 100), (120, 120)],
)
def test_no_device_takes_tiles_that_another_family_alone_can_hold(device, table) -> None:
    """A tile's two factors, staged, fit a block of the device; 121 is 120 with another memory."""
    assert tuning.nearest(device) == table
    assert tuning.nearest(121) == 120
    for tables in (tuning.FORWARD, tuning.SOFTEN):
        for (dtype, _), tile in tables[table].items():
            factors = (tile.block_n + tile.block_v) * tile.block_h * dtype.itemsize
            assert factors * (tile.stages - 1) <= tuning.SHARED_MEMORY[table]
            assert not tile.tma or table in (90, 100)
