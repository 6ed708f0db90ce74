"""The memory model against torch's own allocations, and what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.benches import step_memory as peak
from comal_fast.model.packed import packed_attention
from comal_fast.plan.memory import LargestPass, training
from comal_fast.plan.memory import peak as peak_of
from comal_fast.plan.modes import LADDER, Mode
from comal_fast.plan.shapes import KNOWN, PLANNED, Shape, shape_of
from comal_fast.plan.trace import per_token
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack
from tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bytes don't depend on the threads, and on a busy machine one is faster than two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mode", peak.MODES)
@pytest.mark.parametrize(
    ("size", "pairs", "passes"), [("small", 4, 1), ("small", 4, 2), ("wide", 2, 1)]
)
def test_predicted_peaks_are_those_measured(size: str, pairs: int, passes: int, mode: str) -> None:
    found = peak.measure(peak.Case(size, mode, pairs, passes=passes), torch.float32, CPU)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.05)
    assert (found["recomputed"] > 0) == (mode != "plain")


def saved(model: Any) -> int:
    """Bytes that autograd keeps after a forward pass, parameters not among them."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), x
        return x

    packed = pack([PromptResponse([7] * 64, [8] * 449)], model.device)
    with (
        packed_attention(model, "auto"),
        torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
    ):
        predictor_states(model, packed)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", sorted(PLANNED - {"gemma2"}))
def test_a_layer_keeps_what_is_counted(family: str, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "head_dim": 32}
    options = {"mistral": {"sliding_window": None}}.get(family, {})
    models = [
        tiny_model(family, num_hidden_layers=n, **sizes, **options).to(dtype).train()
        for n in (1, 2)
    ]
    tokens = 64 + 448
    one, two = (saved(model) / tokens for model in models)
    counted = per_token(shape_of(models[0].config), dtype, copying=True)
    assert two - one == pytest.approx(counted.layer, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_with_adapters_keeps_what_is_counted(dtype: torch.dtype) -> None:
    """peft's own adapters, as model.lora adds them: float32, on every linear layer."""
    peft = pytest.importorskip("peft")
    kept = []
    for layers in (1, 2):
        sizes = {"hidden_size": 128, "intermediate_size": 352, "head_dim": 32}
        model = tiny_model(num_hidden_layers=layers, **sizes).to(dtype).train()
        model.requires_grad_(False)
        model.add_adapter(peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
        kept.append(saved(model) / (64 + 448))
    counted = per_token(shape_of(model.config), dtype, rank=4, copying=True)
    assert kept[1] - kept[0] == pytest.approx(counted.layer, rel=0.02)


def test_gemma_2_can_be_counted() -> None:
    each = per_token(KNOWN["gemma-2-2b"], torch.bfloat16)
    assert each.input == 2 * KNOWN["gemma-2-2b"].hidden < each.layer < each.recompute


def test_the_parts_of_an_8b_model() -> None:
    """By hand: bfloat16 weights and gradients, two moments of 8 bits with a scale for 256."""
    shape, mode = KNOWN["llama-3-8b"], replace(LADDER[1], recomputed=32)
    moments = training(shape, mode, LargestPass(8192, 8192, alone=False))
    most = peak_of(moments)
    n, gib = shape.parameters, 2**30
    assert most.parts["weights"] == most.parts["gradients"] == 2 * n
    assert most.parts["optimizer state"] == pytest.approx(2.03 * n, rel=1e-3)
    assert most.parts["head: logits"] == pytest.approx(gib, rel=0.01)
    assert most.parts["head: dW in float32"] == 6 * 128256 * 4096  # float32, and its bfloat16 copy
    inputs = 32 * 8192 * 4096 * 2
    assert inputs < most.parts["activations"] < 1.2 * inputs


@settings(deadline=None)
@given(st.sampled_from(LADDER), st.integers(0, 16), st.integers(64, 9000), st.booleans())
def test_more_costs_no_less(mode: Mode, layers: int, tokens: int, offload: bool) -> None:
    shape = KNOWN["llama-3.2-1b"]

    def bytes_of(tokens: int, layers: int) -> float:
        tried = replace(mode, recomputed=layers, offload_activations=offload and layers > 0)
        return peak_of(training(shape, tried, LargestPass(tokens, tokens, mode.in_backward))).bytes

    assert bytes_of(tokens + 64, layers) >= bytes_of(tokens, layers)
    if 0 < layers < 16:
        assert bytes_of(tokens, layers + 1) <= bytes_of(tokens, layers)


@pytest.mark.parametrize(
    ("name", "billions"),  # as published
    [
        ("llama-3-8b", 8.03), ("llama-3-70b", 70.55), ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213), ("qwen2.5-0.5b", 0.494), ("qwen2.5-7b", 7.616),
        ("qwen2.5-14b", 14.77), ("qwen2.5-72b", 72.71), ("qwen3-0.6b", 0.596),
        ("qwen3-8b", 8.19), ("qwen3-32b", 32.76), ("mistral-7b", 7.248), ("gemma-2-2b", 2.614),
        ("gemma-2-9b", 9.242), ("gemma-2-27b", 27.23), ("phi-3-mini", 3.821),
        ("smollm2-135m", 0.1345), ("smollm2-1.7b", 1.711),
    ],
)  # fmt: skip
def test_known_shapes_have_the_published_size(name: str, billions: float) -> None:
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-0.5b", "gemma-2-2b", "phi-3-mini"])
def test_a_shape_is_that_of_its_configuration(name: str) -> None:
    shape = KNOWN[name]
    assert replace(shape_of(shape.config()), rope_theta=shape.rope_theta) == shape


def test_counted_parameters_are_the_models() -> None:
    shape = Shape(3, 64, 160, 4, 2, 16, 300, False)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(shape.config())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
