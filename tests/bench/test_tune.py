"""`bench tune`, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import record
from bench.__main__ import main
from bench.benches import tune

SMALL = ["tune", "--device", "cpu", "--dtype", "float32", "--hidden", "32", "--vocab", "300"]


def test_every_tile_is_checked_and_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tune.json"
    assert main([*SMALL, "--tokens", "70", "--repeat", "1", "--json", str(out)]) == 0
    found = record.read(out)
    tiles = [row for row in found["rows"] if "block_n" in row]
    assert len(tiles) > 6 and sum(row["chosen"] for row in tiles) == 1
    assert len({row["name"] for row in found["rows"]}) == len(found["rows"])
    assert not [row for row in tiles if "error" in row], tiles
    assert all(row["seconds"]["median"] > 0 for row in found["rows"])
    assert "soften_kernel, 70 × 32 × 300, float32" in capsys.readouterr().out
    page = tune.markdown(found, 0)
    assert "| tile |" in page and page.count("(the table's)") == 1


def test_a_wrong_tile_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comal_kernels.engines.triton import launch

    soften = launch.soften
    calls: list[int] = []

    def wrong(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of resource: shared memory")
        return soften(*given, **named) * (1.5 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(launch, "soften", wrong)
    out = tmp_path / "tune.json"
    assert main([*SMALL, "--tokens", "3", "--repeat", "1", "--json", str(out)]) == 0
    tiles = [row for row in record.read(out)["rows"] if "block_n" in row]
    assert "wrong: a log-sum-exp is" in tiles[0]["error"] and "seconds" not in tiles[0]
    assert "shared memory" in tiles[1]["error"] and "seconds" in tiles[2]


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["tune", "--device", "cpu"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
