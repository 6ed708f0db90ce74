"""Counted FLOP against torch's own counter; fits; the cost model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.__main__ import main
from bench.benches import scaling
from bench.models import MODELS, load
from comal_fast.model.packed import packed_attention
from comal_fast.plan import count
from comal_fast.plan.elementwise import EAGER16, FUSED, LIGER
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack


def test_products_of_the_blocks_are_those_that_torch_counts() -> None:
    model, shape = load("tiny", torch.device("cpu"), torch.float32), MODELS["tiny"]
    sequences = [PromptResponse([1] * 5, [2] * 9), PromptResponse([3] * 4, [5] * 6)]
    packed = pack(sequences, model.device)
    with packed_attention(model, "auto"), FlopCounterMode(display=False) as counter:
        predictor_states(model, packed).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if "mm" in str(op))
    load_ = count.Load([13, 9], 15, 1, 4)  # last tokens predict nothing
    parts = {part.name: part for part in count.parts(shape, load_)}
    # the first layer's inputs are embeddings and need dX too, so all of 6 · parameters · tokens
    # torch 2.11 with transformers 5.17 counts the angles of the positions too, 11 tokens × 32
    assert products == pytest.approx(parts["blocks: products"].flops, rel=1e-4)


def test_parameters_are_the_models() -> None:
    model, shape = load("tiny", torch.device("cpu"), torch.float32), MODELS["tiny"]
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_an_exponent_is_found_again() -> None:
    sizes = [256, 1024, 4096]
    values = [3e-4 * n**1.25 for n in sizes]
    assert scaling.exponent(sizes, values) == pytest.approx(1.25)
    row = {"name": "a", "seconds": {"median": 1.0}, "tokens": 256, "extra_bytes": 100}
    fits = scaling.fits([row, {**row, "seconds": {"median": 4.0}, "tokens": 1024}])
    assert fits["a"]["time"] == pytest.approx(1) and fits["a"]["memory"] == pytest.approx(0)


def test_the_model_of_an_8b_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def predict(*options: str) -> dict[str, object]:
        out = tmp_path / "model.json"
        arguments = ["model", "--model", "llama3-8b", "--pairs", "4", *options]
        assert main([*arguments, "--json", str(out)]) == 0
        return json.loads(out.read_text())

    one = predict("--gpu", "h100")
    memory = one["memory"]
    assert isinstance(memory, dict) and memory["weights"] == pytest.approx(2 * 8.03e9, rel=1e-3)
    assert not one["extrapolated"] and one["measured"] is None
    assert predict("--gpu", "a100")["seconds"] > one["seconds"]  # type: ignore[operator]
    many = predict("--gpu", "h100", "--nodes", "2")
    assert many["extrapolated"] and many["peak"] < one["peak"]  # type: ignore[operator]
    assert "extrapolated" in capsys.readouterr().out
    assert main(["model", "--gpu", "here", "--nodes", "2"]) == 2
    assert "--nodes" in capsys.readouterr().err


def test_a_step_takes_no_less_with_more_of_anything() -> None:
    shape = MODELS["llama3-8b"]

    def total(*sizes: int, responses: int = 100, again: float = 0.0) -> tuple[float, float]:
        parts = count.parts(shape, count.Load(sizes, responses, 1, 2, again))
        return sum(p.flops for p in parts), sum(p.bytes for p in parts)

    base = np.array(total(100, 200))
    for more in (total(150, 200), total(100, 200, responses=150), total(100, 200, again=1.0)):
        assert (np.array(more) >= base).all() and (np.array(more) != base).any()


def test_each_lever_is_predicted_to_pay(tmp_path: Path) -> None:
    out = tmp_path / "predicted.json"
    assert main(["predict", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = found["rows"]
    seconds = [row["predicted"] for row in rows]
    assert seconds[:6] == sorted(seconds[:6], reverse=True) and seconds[8] < seconds[7]
    for row in rows:
        assert row["predicted"] == pytest.approx(sum(row["parts"].values()))
    assert 139 in rows[5]["fits"] and 80 in rows[6]["fits"] and rows[5]["share"] > rows[0]["share"]
    # the step that was measured, with all of its layers recomputed
    assert seconds[0] == pytest.approx(found["measured"]["seconds"], rel=0.05)


def test_liger_moves_less_than_transformers() -> None:
    shape = MODELS["llama3-8b"]
    moved = [layers.moved(shape, 1) for layers in (EAGER16, LIGER, FUSED)]
    assert moved == sorted(moved, reverse=True)
    assert LIGER.moved(shape, 2) > LIGER.moved(shape, 1) > LIGER.moved(shape, 1, backward=False)
