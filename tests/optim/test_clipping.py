"""Clipping: the norm in float32, and the coefficient inside the update."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comal_fast.config.schema import TrainingConfig
from comal_fast.optim import Stepper, make_optimizer
from comal_fast.optim.norms import gradient_norms, total_norm

SHAPES = [(64, 96), (96,), (4, 8, 32), (1,), (300, 5)]


def make(dtype: torch.dtype, scale: float = 1.0, **options: Any) -> Stepper:
    """A stepper whose parameters have gradients."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    for w in weights:
        w.grad = (scale * torch.randn(w.shape, generator=generator)).to(dtype)
    stepper = make_optimizer(weights, TrainingConfig(weight_decay=0.01, **options))
    stepper.arm(1e-2, seed=7, last=True)
    return stepper


def norm_of(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_one_of_float32(dtype: torch.dtype) -> None:
    """torch's clip_grad_norm_ makes that of halves in halves."""
    stepper = make(dtype)
    gradients = [p.grad.clone() for p in stepper.parameters]
    exact = norm_of(gradients)
    theirs = torch.nn.utils.get_total_norm(gradients).item()
    assert stepper.step() == pytest.approx(exact, rel=1e-6)
    assert dtype is torch.float32 or abs(theirs / exact - 1) > 1e-4


def test_the_norm_of_a_large_gradient_loses_no_digits() -> None:
    """Measured: 3e-7; added up in order, as torch does on a CPU, 2e-3."""
    gradient = torch.randn(1 << 15, 576, generator=torch.Generator().manual_seed(0))
    exact = gradient.double().norm().item()
    (norm,) = gradient_norms([gradient])
    assert norm.item() == pytest.approx(exact, rel=2e-6)


def test_norms_that_float32_cannot_square() -> None:
    parts = [torch.tensor(3e25), torch.tensor(4e25)]
    assert total_norm(parts, torch.zeros(1)).item() == pytest.approx(5e25, rel=1e-6)


def test_without_gradients_there_is_nothing_to_do() -> None:
    stepper = make(torch.float32)
    for p in stepper.parameters:
        p.grad = None
    before = [p.clone() for p in stepper.parameters]
    assert stepper.step() == 0.0
    assert all(torch.equal(p, b) for p, b in zip(stepper.parameters, before, strict=True))


MODES = [{}, {"optimizer_state": "float32"}, {"optimizer_state": "8bit"}]


@pytest.mark.parametrize("options", MODES)
def test_clipped_updates_are_those_of_scaled_gradients(options: dict[str, Any]) -> None:
    """Three steps, so that the moments count; the norms lie above, under and above the limit."""
    if "8bit" in options.values():
        pytest.importorskip("bitsandbytes")
    ours = make(torch.float32, max_grad_norm=20.0, **options)
    theirs = make(torch.float32, max_grad_norm=0.0, **options)
    for size in (1.0, 0.1, 3.0):
        for mine, other in zip(ours.parameters, theirs.parameters, strict=True):
            gradient = size * torch.cos(torch.arange(mine.numel()) + size).view(mine.shape)
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        norm = norm_of([p.grad for p in theirs.parameters])
        assert (norm > 20) == (size != 0.1)
        torch.nn.utils.clip_grad_norm_(theirs.parameters, 20.0)
        assert ours.step() == pytest.approx(norm, rel=1e-6)
        theirs.step()
    for mine, other in zip(ours.parameters, theirs.parameters, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)
    moments = [s.inner.state[s.parameters[0]]["exp_avg"].double() for s in (ours, theirs)]
    assert torch.allclose(*moments, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", MODES)
def test_under_the_limit_clipping_changes_no_bit(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    if "8bit" in options.values():
        pytest.importorskip("bitsandbytes")
    ours = make(dtype, 0.01, max_grad_norm=1.0, **options)
    theirs = make(dtype, 0.01, max_grad_norm=0.0, **options)
    assert ours.step() == theirs.step() < 1.0
    for mine, other in zip(ours.parameters, theirs.parameters, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", MODES[:2])
def test_nothing_is_updated_by_what_is_no_number(options: dict[str, Any], bad: float) -> None:
    stepper = make(torch.float32, **options)
    stepper.parameters[2].grad[0, 0, 0] = bad
    before = copy.deepcopy([p.detach() for p in stepper.parameters])
    assert not math.isfinite(stepper.step())
    assert all(torch.equal(p, b) for p, b in zip(stepper.parameters, before, strict=True))
    assert all(p.grad is None for p in stepper.parameters)


class Sweeps(TorchDispatchMode):
    """Counts the operators that read or write a gradient, by name."""

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        self.storages = {g.untyped_storage()._cdata for g in gradients}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
        touched = sum(x.untyped_storage()._cdata in self.storages for x in given)
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if touched and not views:
            self.counts[name] += touched
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"optimizer_state": "float32"}])
def test_each_gradient_is_swept_for_the_norm_and_for_the_update(options: dict[str, Any]) -> None:
    """Once each, clipped or not: no third sweep scales it, and no second one measures it again."""
    for limit in (0.0, 1e-3, 1e6):
        stepper = make(torch.float32, max_grad_norm=limit, **options)
        with Sweeps([p.grad for p in stepper.parameters]) as seen:
            stepper.step()
        updates = sum(n for name, n in seen.counts.items() if "adamw" in name)
        assert updates == len(SHAPES)
        assert seen.counts["linalg_vector_norm"] == len(SHAPES)
        assert sum(seen.counts.values()) == 2 * len(SHAPES), seen.counts
