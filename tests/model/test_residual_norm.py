"""A residual addition and its norm in one kernel, interpreted; and the layers that take it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import bfloat16
from comal_fast.model import liger
from comal_fast.model.activations import recompute_layers
from comal_fast.model.residual_norm import (
    KNOWN_FORWARD,
    add_norm,
    fuse_residual_norms,
    has_known_forward,
)
from tiny import tiny_model

EPS = 1e-5


def composed(x: Tensor, r: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers' layers have it: an addition, then Llama's norm."""
    total = r + x
    wide = total.to(torch.promote_types(x.dtype, torch.float32))
    rho = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return weight * (wide * rho).to(x.dtype), total


def fused(x: Tensor, r: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_norm(x, r, weight, EPS)


def outcome(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Both outputs and all gradients, in float64 to be compared."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs[:3]]
    outputs = function(*leaves)
    upstream = [x.to(dtype) for x in inputs[3:]]
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    return [x.detach().double() for x in (*outputs, *gradients)]


def drawn(rows: tuple[int, ...], width: int, seed: int) -> list[Tensor]:
    """x, r, weight and the gradients of both outputs, in numbers that bfloat16 holds."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((*rows, width), (*rows, width), (width,), (*rows, width), (*rows, width))
    return [torch.randn(shape, generator=g).bfloat16().float() for shape in shapes]


# one row; a part of a program's rows; several programs; a width that is no power of two
@pytest.mark.parametrize(("rows", "width"), [((1,), 8), ((2, 9), 48), ((1, 37), 64), ((33,), 24)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_and_gradients(rows: tuple[int, ...], width: int, seed: int) -> None:
    inputs = drawn(rows, width, seed)
    truth = outcome(composed, inputs, torch.float64)
    found = outcome(fused, inputs, torch.float32)
    plain = outcome(composed, inputs, torch.float32)
    for ours, theirs, right in zip(found, plain, truth, strict=True):
        assert (ours - right).norm() <= 2 * (theirs - right).norm() + 1e-6 * right.norm()


@pytest.fixture
def interpreted_bfloat16() -> Iterator[None]:
    bfloat16.install()
    yield


@pytest.mark.usefixtures("interpreted_bfloat16")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_bfloat16_it_is_no_further_off(seed: int) -> None:
    """The sum is the same number; a gradient that is rounded once is nearer."""
    inputs = drawn((37,), 64, seed)
    truth = outcome(composed, inputs, torch.float64)
    found = outcome(fused, inputs, torch.bfloat16)
    plain = outcome(composed, inputs, torch.bfloat16)
    assert torch.equal(found[1], plain[1])
    for ours, theirs, right in zip(found, plain, truth, strict=True):
        assert (ours - right).norm() <= 1.05 * (theirs - right).norm()


def test_a_frozen_weight_and_rows_that_are_not_contiguous() -> None:
    x, r, weight, *upstream = drawn((20,), 16, 3)
    wide = torch.cat([x, x], 1)[:, :16].requires_grad_()
    outputs = fused(wide, r.requires_grad_(), weight)
    gradients = torch.autograd.grad(outputs, (wide, r), upstream)
    right = outcome(composed, [x, r.detach(), weight, *upstream], torch.float64)
    for found, wanted in zip((*outputs, *gradients), right, strict=False):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Liger's norms alone enter a model, and leave transformers as it was."""
    pytest.importorskip("liger_kernel")
    from transformers.models.llama import modeling_llama

    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    monkeypatch.setattr(liger, "KERNELS", dict.fromkeys(liger.KERNELS, False) | {"rms_norm": True})
    monkeypatch.setattr(liger, "_STOCK", {})
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    def plain_norm(self: Any, x: Tensor) -> Tensor:  # Liger's own needs a library of CUDA's
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, True) + self.variance_epsilon))

    monkeypatch.setattr(LigerRMSNorm, "forward", plain_norm)
    yield


def passed(model: Any, recompute: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and the weights' gradients of one pass."""
    undo = recompute_layers(model.train(), len(model.model.layers) * recompute)
    ids = torch.arange(24).reshape(2, 12) % 50
    logits = model(ids, use_cache=False).logits
    gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
    undo()
    return logits.detach(), list(gradients)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_computes_what_it_did(recompute: bool) -> None:
    model = tiny_model()
    wanted = passed(model, recompute)
    liger.apply(model)
    assert fuse_residual_norms(model) == len(model.model.layers)
    calls: list[int] = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda *_: calls.append(1))
    found = passed(model, recompute)
    assert len(calls) == len(model.model.layers) * (1 + recompute)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert model.state_dict().keys() == tiny_model().state_dict().keys()


@pytest.mark.usefixtures("patched")
def test_sharded_layers_keep_it() -> None:
    """FSDP2 makes a class of its own of a layer's, and recomputation looks at the outermost."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_model()
    wanted = passed(model, True)
    liger.apply(model)
    assert fuse_residual_norms(model) == 2
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=mesh)
        undo = recompute_layers(model.train(), 2)
        ids = torch.arange(24).reshape(2, 12) % 50
        logits = model(ids, use_cache=False).logits
        logits.square().mean().backward()
        undo()
        gradients = [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close((logits.detach(), gradients), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("fuse_residual", [True, False])
def test_it_comes_with_ligers_kernels_and_can_be_left_out(fuse_residual: bool) -> None:
    model = liger.use_liger(tiny_model(), "auto", torch.device("cuda"), fuse_residual)
    names = {layer.post_attention_layernorm.forward.__name__ for layer in model.model.layers}
    assert names == ({"_add_and_normalize"} if fuse_residual else {"plain_norm"})
    kept = liger.use_liger(tiny_model(), "off", torch.device("cuda"))
    assert "forward" not in vars(kept.model.layers[0].post_attention_layernorm)


@pytest.mark.usefixtures("patched")
def test_norms_that_are_not_llamas_stay() -> None:
    model = tiny_model()
    assert fuse_residual_norms(model) == 0  # transformers' own norms
    liger.apply(model)
    for layer in model.model.layers:
        layer.post_attention_layernorm.offset = 1.0
    assert fuse_residual_norms(model) == 0


def test_families() -> None:
    from importlib import import_module

    def layer_of(family: str) -> type:
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        (name,) = [n for n in vars(module) if n.endswith("DecoderLayer") and n[0].isupper()]
        return getattr(module, name)  # type: ignore[no-any-return]

    for family in ("llama", "mistral", "qwen2", "qwen3", "smollm3"):
        assert has_known_forward(layer_of(family)), family
    for family in ("gemma2", "phi3", "olmo2", "granite"):  # other norms, dropout, a multiplier
        assert not has_known_forward(layer_of(family)), family
    assert not has_known_forward(int)
    assert KNOWN_FORWARD.groups == 1


COMPILE = """
from bench.measure.compiled import Case, measure
from comal_fast.model.residual_norm import ROWS, WIDEST, _power_of_two, _warps
from comal_fast.model.residual_norm_kernel import add_norm_backward_kernel, add_norm_kernel

other = {"rho_ptr": "*fp32", "dw_ptr": "*fp32", "eps": "fp32", "width": "i32", "num_rows": "i32"}
for element in ("bf16", "fp32"):
    for width in (896, 4096, WIDEST):
        block = _power_of_two(width)
        for kernel, more in (
            (add_norm_kernel, {}),
            (add_norm_backward_kernel, {"ROWS": ROWS, "HAS_DW": True}),
            (add_norm_backward_kernel, {"ROWS": ROWS, "HAS_DW": False}),
        ):
            names = [n for n in kernel.arg_names if not n.isupper()]
            types = {n: other.get(n, "*" + element) for n in names}
            constants = {**more, "BLOCK": block}
            case = Case(kernel.__name__, "", kernel, types, constants, _warps(block), 3, True)
            for arch in (80, 86, 89, 90, 100, 120):
                found = measure(case, arch)
                print(kernel.__name__, element, width, arch, found.registers, found.spill_bytes)
"""


@pytest.mark.slow
def test_it_compiles_without_spills() -> None:
    """In a process of its own: kernels here are bound to the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2 * 3 * 3 * 6
    assert [line for line in lines if int(line[-1])] == []
