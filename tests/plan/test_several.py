"""Training on several nodes, on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comal_fast.cli import main
from comal_fast.config import Config
from comal_fast.config.schema import ModelConfig
from comal_fast.plan.machines import MACHINES
from comal_fast.plan.modes import LADDER, QLORA
from comal_fast.plan.search import Workload, usable
from comal_fast.plan.several import plan, traffic
from comal_fast.plan.shapes import KNOWN

GIB = 2**30
NAME = "meta-llama/Meta-Llama-3-70B-Instruct"
LLAMA, H100 = KNOWN["llama-3-70b"], MACHINES["h100"]
WORK = Workload.of(Config(model=ModelConfig(name_or_path=NAME, dtype="bfloat16")))
EIGHT_BIT = LADDER[1]


def test_bytes_over_each_link() -> None:
    """Two gathers of the layers, one of the rest, in bfloat16, and gradients in float32."""
    blocks, every = LLAMA.block_parameters, LLAMA.parameters
    moved = 2 * 2 * blocks + 2 * (every - blocks) + 4 * every
    one = traffic(LLAMA, EIGHT_BIT, 8, 1)
    assert one.inside == pytest.approx(moved * 7 / 8) and one.between == 0
    four = traffic(LLAMA, EIGHT_BIT, 32, 4)
    assert four.inside == pytest.approx(moved * 31 / 32)
    assert four.between == pytest.approx(moved * 3 / 4 / 8)  # into a node, over its eight cards
    assert four.seconds(H100) == max(four.inside / H100.link, four.between / H100.network)
    assert traffic(LLAMA, EIGHT_BIT, 2, 2).inside == 0  # a GPU a node
    assert traffic(LLAMA, QLORA, 32, 4).inside < one.inside / 100


@pytest.mark.parametrize("nodes", [1, 2, 64])
@pytest.mark.parametrize("mode", LADDER, ids=lambda mode: mode.name)
def test_what_is_chosen_fits_and_more_nodes_are_faster(mode, nodes: int) -> None:
    found = plan(LLAMA, mode, WORK, H100, 80 * GIB, 8, nodes)
    if found is None:
        assert nodes == 1 and mode is LADDER[0]  # 32-bit moments of 70B: 71 GiB a GPU by themselves
        return
    assert found.bytes <= usable(80 * GIB) and found.tokens <= found.most
    assert 0 < found.exposed < found.seconds and found.gpus == 8 * nodes
    twice = plan(LLAMA, mode, WORK, H100, 80 * GIB, 8, 2 * nodes)
    assert twice is not None and twice.bytes <= usable(80 * GIB)
    assert 1.5 * found.rate < twice.rate
    slow = plan(LLAMA, mode, WORK, replace(H100, network=1e6, link=1e6), 80 * GIB, 8, nodes)
    assert slow is not None and slow.rate < found.rate


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command = ["plan", "--model", NAME, "--gpu", "h100", "--gpu-memory"]
    assert main([*command, "80GiB", "--nodes", "3"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert set(rows) - {""} == {"1", "2", "3"} and "estimates, not measured" in out
    assert main([*command, "8GiB", "--nodes", "1"]) == 2
    assert "no mode trains on 1 × 8 GPUs" in capsys.readouterr().err
    for wrong in (
        ["--nodes", "0"],
        ["--gpus-per-node", "8"],
        ["--nodes", "1", "--gpus-per-node", "0"],
    ):
        assert main([*command, "80GiB", *wrong]) == 2
        assert wrong[-2] in capsys.readouterr().err
