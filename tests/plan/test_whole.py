"""Hours of a whole run, on paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.plan.machines import MACHINES
from comal_fast.plan.modes import LADDER
from comal_fast.plan.search import Workload, choose, search
from comal_fast.plan.shapes import read_shape
from comal_fast.plan.whole import whole


def test_hours_of_a_run() -> None:
    """By hand: every phase's products and bytes at a machine's own rates."""
    config = load_config(
        Path(__file__).resolve().parents[2] / "configs/paper/llama3-8b.yaml",
        ["algorithm.iterations=4", "algorithm.ref_update_interval=2", "data.eval_prompts=2"],
    )
    shape, work, machine = read_shape(config.model), Workload.of(config), MACHINES["h100"]
    best = choose(search(shape, work, machine, 80e9), 80e9)
    assert best is not None
    one = whole(config, shape, best, machine, 80e9, 1)
    products = machine.flops * machine.products
    block, head, prompts = shape.block_parameters, shape.head_parameters, 6500
    seconds = {name: 3600 * (hours or 0) for name, hours in one.hours.items()}
    steps = math.ceil(prompts * 3 / 32)  # best_second: a pair a prompt, three epochs
    assert seconds["train"] == pytest.approx(4 * steps * best.seconds)
    judged = 2 * 4 * prompts * 2 * block * (256 + 5 * 384) / products
    assert judged < seconds["judge"] < 1.6 * judged  # attention and elementwise operators
    passed = (1 + 2 + 1 + 2) * prompts  # under one policy where the reference is the last iterate
    logps = passed * 2 * (block * (256 + 2 * 384) + head * 2 * 384) / products
    assert logps < seconds["logps"] < 1.6 * logps
    tokens = 4 * prompts * 5 * 384
    weights = tokens / 160 * (block + head) * 2 / (machine.bandwidth * machine.elementwise)
    assert weights < seconds["generate, evaluate"] < 3 * weights  # the cache, and the prompts
    eight = whole(config, shape, best, machine, 80e9, 8)
    for name in ("generate, evaluate", "judge", "logps"):
        assert eight.hours[name] == pytest.approx(one.hours[name] / 8)
    assert one.hours["train"] / 12 < eight.hours["train"] < one.hours["train"] / 4
    with pytest.raises(InputError, match="how many prompts an iteration has"):
        data = config.data.model_copy(update={"prompts_per_iteration": None})
        whole(config.model_copy(update={"data": data}), shape, best, machine, 80e9, 1)


def test_hours_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(__file__).resolve().parents[2] / "configs/llama3-8b-1gpu.yaml")
    assert main(["plan", config, "--gpu-memory", "80GiB", "--hours", "--gpus-per-node", "4"]) == 0
    assert "Hours of the whole run" in (out := capsys.readouterr().out) and "4 GPUs" in out
    for more, words in (
        (["--gpus-per-node", "4"], "goes with --nodes or --hours"),
        (["--hours", "--nodes", "2"], "--hours: of one node"),
        (["--hours", "--gpus-per-node", "0"], "expected 1 or more"),
    ):
        assert main(["plan", config, "--gpu-memory", "80GiB", *more]) == 2
        assert words in capsys.readouterr().err


def test_responses_of_a_prompt_that_share_a_step_are_counted_once(tmp_path: Path) -> None:
    """All pairs of five samples: a step of 160 pairs passes 16 prompts with five responses each."""
    path = Path(__file__).resolve().parents[2] / "configs/llama3-8b-1gpu.yaml"
    shape, mode = read_shape(load_config(path).model), LADDER[0]
    load = Workload.of(load_config(path)).load(mode, shape)
    assert load.tokens == 16 * (256 + 5 * 384) and load.responses == 16 * 5 * 384
    crossed = ["pairing.strategy=best_worst", "training.train_batch_size=32"]
    load = Workload.of(load_config(path, crossed)).load(mode, shape)
    assert load.tokens == 16 * (256 + 4 * 384)
    alone = ["algorithm={prox: dro}", "training.train_batch_size=80"]
    text = path.read_text().replace(
        "  strategy: all # ten pairs a prompt\n  labels: soft\n", "  {}\n"
    )
    own = tmp_path / "dro.yaml"
    own.write_text(text)
    load = Workload.of(load_config(own, alone)).load(mode, shape)
    assert load.tokens == 16 * (256 + 5 * 384)  # 80 responses of 16 prompts
    apart = Workload.of(load_config(path, ["training.shuffle=items"])).load(mode, shape)
    assert apart.responses == 160 * 2 * 384
