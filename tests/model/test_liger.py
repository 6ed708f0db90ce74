"""Liger's kernels: when they are taken, when refused, and what is put into a model.

The kernels themselves run on CUDA only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from comal_fast.config import load_config
from comal_fast.model import liger
from tiny import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_leaves_a_model_on_a_cpu_as_it_is() -> None:
    model = tiny_model()
    before = [type(m) for m in model.modules()]
    for requested in ("auto", "off"):
        assert [type(m) for m in liger.use_liger(model, requested, CPU).modules()] == before


def test_on_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="model.liger_kernels: on needs CUDA, and .* on cpu"):
        liger.use_liger(tiny_model(), "on", CPU)


@pytest.mark.parametrize("value", ["on", "true"])
def test_on_is_refused_in_a_config_for_a_cpu(tiny_run: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"model\.liger_kernels: on needs model\.device=cuda"):
        load_config(tiny_run, [f"model.liger_kernels={value}"])


def test_on_is_refused_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert liger.why_not("llama", CUDA) == (
        "needs the package liger-kernel; pip install 'comal-fast[gpu]'"
    )


def test_families() -> None:
    pytest.importorskip("liger_kernel")
    assert liger.why_not("bloom", CUDA) == "has no kernels for models of type bloom"
    for family in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3"):
        assert liger.why_not(family, CUDA) is None


def test_norms_and_mlps_are_replaced_and_the_loss_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("liger_kernel")
    from transformers.models.llama import modeling_llama

    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # put back afterwards
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    model = tiny_model()
    forward = type(model).forward
    liger.apply(model)
    layer = model.model.layers[0]
    for module in (layer.input_layernorm, layer.mlp, model.model.norm):
        assert "liger" in module.forward.__func__.__module__
    assert "liger" in modeling_llama.apply_rotary_pos_emb.__module__
    assert model.forward.__func__ is forward


def test_memory_is_counted_on_stock_layers_whatever_was_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`activation_memory: auto` counts after the model is loaded, on a device without memory."""
    pytest.importorskip("liger_kernel")
    from transformers.models.llama import modeling_llama

    from comal_fast.plan.shapes import shape_of
    from comal_fast.plan.trace import per_token

    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # put back afterwards
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    model = tiny_model()
    per_token.cache_clear()
    before = per_token(shape_of(model.config), torch.bfloat16)
    for _ in range(2):  # a second model must not take the kernels for transformers' own
        liger.apply(model)
    per_token.cache_clear()
    assert per_token(shape_of(model.config), torch.bfloat16) == before
    assert "liger" in modeling_llama.apply_rotary_pos_emb.__module__
