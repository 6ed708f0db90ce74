"""How kernels would fill a GPU: instructions counted in machine code, waves in shapes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.benches import kernels
from bench.measure import waves
from bench.measure.sass import Frequencies, frequencies
from comal_kernels.engines.triton.tuning import SHARED_MEMORY, Tile

REPO = Path(__file__).resolve().parents[2]
TILE = Tile(128, 256, 64, 8, 3, tma=True, persistent=True)
H100 = waves.PROCESSORS[90]


def sass(*lines: str) -> str:
    """As cuobjdump prints it: an address, an instruction, its encoding."""
    text = (f"        /*{16 * i:04x}*/  {line} ;  /* 0x0 */" for i, line in enumerate(lines))
    return "\n".join(text)


def test_instructions_of_a_nest_and_of_its_flattened_form() -> None:
    nest = sass(
        "MOV R1, R2",  # 00
        "LDC R0, c[0x0][0x0]",  # 10: a tile
        "IADD3 R3, R3, 0x1",  # 20: a step
        "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR36], R24",  # 30
        "@P0 BRA 0x20",  # 40
        "MUFU.EX2 R4, R24",  # 50
        "STG R4",  # 60
        "@!P1 BRA 0x10",  # 70
        "EXIT",  # 80
    )
    flattened = sass(
        "MOV R1, R2",  # 00
        "IADD3 R3, R3, 0x1",  # 10: a step
        "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR36], R24",  # 20
        "@P0 BRA 0x60",  # 30: no tile ends here
        "MUFU.EX2 R4, R24",  # 40
        "STG R4",  # 50
        "@!P1 BRA 0x10",  # 60
        "EXIT",  # 70
    )
    one, other = frequencies(nest), frequencies(flattened)
    assert one.step == Counter(IADD3=1, HGMMA=1, BRA=1)
    assert one.tile == Counter(LDC=1, MUFU=1, STG=1, BRA=1)
    assert one.program == Counter(MOV=1, EXIT=1)
    assert other.step == Counter(IADD3=1, HGMMA=1, BRA=2)
    assert other.tile == Counter(MUFU=1, STG=1)
    with pytest.raises(ValueError, match="no matrix instruction"):
        frequencies(sass("MOV R1, R2", "EXIT"))


def test_tiles_waves_and_what_follows_a_product() -> None:
    shape = waves.Shape(8192, 4096, 128256)
    counted = Frequencies(Counter(IADD3=100), Counter(MUFU=128, FADD=1000), Counter(MOV=9))
    found = waves.waves(shape, TILE, counted, H100)
    assert (found.tiles, found.programs) == (64 * 501, 132)
    assert found.waves == pytest.approx(242.91, abs=0.01) and found.busy > 0.999
    assert found.matrix == 2 * 128 * 256 * 4096 / 4096  # FLOP over FLOP a cycle
    assert found.after == max(1128 * 8 / 4, 128 * 8 * 32 / 16)
    assert found.share == pytest.approx(found.busy * found.matrix / (found.matrix + found.after))
    one_more = waves.waves(waves.Shape(128 * 133, 4096, 256), TILE, counted, H100)
    assert one_more.busy == pytest.approx(133 / 264)  # the last wave has a single tile


def test_a_call_takes_no_less_than_its_products() -> None:
    counted = Frequencies(Counter(IADD3=100), Counter(MUFU=128, FADD=1000), Counter())
    for rows in (1, 100, 5000, 70_000):
        shape = waves.Shape(rows, 4096, 128256)
        for found in waves.candidates(
            shape, TILE, dict.fromkeys(("training", "forward"), counted), H100
        ):
            assert 0 < found.share < 1, found
            assert found.refuted
        seconds, some, words = waves.sliced(shape, True, H100)
        assert some <= max(rows, 512) and some * words * 4 <= H100.cache / 2
        assert seconds * waves.peak(H100) > shape.flops


@pytest.mark.slow
def test_the_chosen_kernels_reach_95_percent_on_paper(tmp_path: Path) -> None:
    """8192 × 4096 × 128256 on an H100, forward and training."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = tmp_path / "waves.json"
    command = [sys.executable, "-m", "bench", "compile", "--waves", "--json", str(out)]
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert not any(row["spill_bytes"] for row in found["rows"])
    chosen = [c for c in found["candidates"] if c["name"] == "softened as the product is made"]
    assert {c["call"] for c in chosen} == {"training", "forward"}
    assert all(c["share"] >= 0.95 for c in chosen), chosen
    for row in found["rows"]:
        assert 300 < row["outside"] < 3000, row  # 128 exponentials a thread, and what they need


def test_gpus_without_figures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels compile; how they fill the GPU is not known."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    args = argparse.Namespace(arch=120, match="", waves=True, tokens=1, hidden=64, vocab=64)
    with pytest.raises(ValueError, match=r"^--arch 120: --waves knows 80, 90, 100$"):
        kernels.run(args)


@pytest.mark.parametrize(
    ("spills", "shared", "failed"), [(0, 101_376, False), (8, 0, True), (0, 114_712, True)]
)
def test_a_kernel_that_no_block_can_hold_fails_the_bench(spills, shared, failed) -> None:
    """114,712 bytes are what sm_100's tile asks for, and a block of sm_120 has 101,376."""
    shape = {"shared_limit": SHARED_MEMORY[120]}
    rows = [{"spill_bytes": spills, "shared_bytes": shared}]
    assert kernels.BENCH.failed({"shape": shape, "rows": rows}) is failed
