"""Peak memory of a fresh process; shares of a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.__main__ import main
from bench.benches import head_memory as memory
from bench.contender import Contender
from bench.measure.operators import least_elements
from bench.peers import FAMILIES
from bench.problem import Size
from comal_fast.errors import InputError
from comal_fast.system import peak


@pytest.mark.slow
@pytest.mark.nightly
def test_full_logits_grow_and_ours_do_not() -> None:
    def extra(family: str, tokens: int) -> int:
        size = Size(64, 32000, torch.float32, torch.device("cpu"))
        found = next(iter(FAMILIES[family](size)))
        assert isinstance(found, Contender)
        wanted = memory.Spec.of(family, {**found.text(), "tokens": tokens}, size)
        return memory.extra(wanted)["extra_bytes"]

    logits = 4 * 32000 * 3072
    assert extra("torch", 4096) - extra("torch", 1024) > 1.5 * logits
    assert abs(extra("comal", 4096) - extra("comal", 1024)) < 0.15 * logits


def test_a_contender_that_fails_says_why() -> None:
    wanted = memory.Spec("torch", "plain torch, full logits", "", 200, 8, 50, "float32", "cpu")
    assert "200 is not a positive multiple" in memory.extra(wanted)["why"]


def test_a_contender_is_its_leanest_variant() -> None:
    """One line in the picture: two variants of a name were joined by a zigzag."""

    def row(name: str, variant: str, tokens: int, extra_bytes: int) -> dict[str, Any]:
        row = {"name": name, "variant": variant, "tokens": tokens}
        return {**row, "extra_bytes": extra_bytes << 20}

    rows = [row("a", "small", 128, 3), row("a", "large", 128, 2), row("b", "", 128, 1)]
    rows += [row("a", "small", 256, 5), row("a", "large", 256, 9), {"name": "c", "why": "not here"}]
    chosen = [[(r["name"], r["variant"], r["tokens"]) for r in v] for v in memory.leanest(rows)]
    assert chosen == [[("b", "", 128)], [("a", "small", 128), ("a", "small", 256)]]
    columns, cells = memory.memory_rows({"rows": rows})
    assert columns[1:] == ["MiB at 128 tokens", "MiB at 256 tokens"]
    assert cells == [["b", "1", ""], ["a, small", "3", "5"]]


def test_where_peaks_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench must not take the peak of another phase for its own; a run may go on with less."""
    cpu = torch.device("cpu")
    assert peak.bytes_in_use(cpu) <= peak.peak_bytes(cpu)
    monkeypatch.setattr(peak, "_PROCESS", tmp_path / "nothing")
    for measured in (peak.start_peak, peak.bytes_in_use, peak.peak_bytes):
        with pytest.raises(InputError, match="memory"):
            measured(cpu)
    peak.reset_peak(cpu)
    assert 0 < peak.peak_gib(cpu) < 64


def test_elements_that_must_move() -> None:
    assert least_elements("aten::mm", [[4, 5], [5, 6]]) == 20 + 30 + 24
    assert least_elements("aten::mm", [[4, 5], [5, 6], [4, 6]]) == 20 + 30 + 24  # out= given
    assert least_elements("aten::addmm", [[6], [4, 5], [5, 6]]) == 6 + 20 + 30 + 24
    assert least_elements("aten::bmm", [[2, 4, 5], [2, 5, 6]]) == 40 + 60 + 48
    assert least_elements("aten::add", [[7, 3], [3]]) == 21 + 3 + 21


@pytest.mark.parametrize(
    "what",
    [
        ["head", "--tokens", "256", "--hidden", "32", "--vocab", "2000"],
        ["step", "--model", "tiny", "--pairs", "2", "--response", "8"],
    ],
)
def test_the_parts_of_a_profile_add_up(what: list[str], tmp_path: Path) -> None:
    out, trace, plot = (tmp_path / name for name in ("p.json", "trace.json", "roof.png"))
    arguments = ["--json", str(out), "--trace", str(trace), "--plot", str(plot)]
    assert main(["profile", *what, "--device", "cpu", *arguments]) == 0
    found = json.loads(out.read_text())
    kinds = found["breakdown"]
    assert sum(kinds.values()) == pytest.approx(found["wall"], rel=0.02)
    assert all(seconds >= 0 for seconds in kinds.values())
    assert kinds["products of the head"] > 0
    if what[0] == "step":
        assert kinds["attention"] > 0 and kinds["optimizer"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_options_of_the_other_profile_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "head", "--device", "cpu", "--pairs", "2"]) == 2
    assert "--pairs: means nothing to `profile head`" in capsys.readouterr().err
