"""Gradients of rows that are taken several times: exact up to one rounding, in one order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from comal_kernels.gather import gather_rows
from comal_kernels.packing import PromptResponse, pack

WIDTH = 64


def gradients(function, states: Tensor, index: Tensor, upstream: Tensor) -> Tensor:
    leaf = states.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf, index), leaf, upstream)
    return gradient


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("responses", [3, 4, 8])
def test_a_prompt_s_last_state_is_rounded_once(responses, seed, device) -> None:
    """In bfloat16, against float64: half a unit in the last place."""
    torch.manual_seed(seed)
    sequences = [
        PromptResponse([prompt, 7, 8], [*range(1, 2 + answer)])
        for prompt in range(5)
        for answer in range(responses)
    ]
    packed = pack(sequences, device)
    counts = packed.predictors.bincount()
    assert int(counts.max()) == responses and int((counts == responses).sum()) == 5
    states = torch.randn(packed.tokens, WIDTH, device=device, dtype=torch.bfloat16)
    upstream = torch.randn(len(packed.predictors), WIDTH, device=device, dtype=torch.bfloat16)
    assert torch.equal(gather_rows(states, packed.predictors), states[packed.predictors])
    ours = gradients(gather_rows, states, packed.predictors, upstream)
    exact = torch.zeros(packed.tokens, WIDTH, dtype=torch.float64, device=device)
    exact.index_add_(0, packed.predictors, upstream.double())
    size = torch.zeros_like(exact).index_add_(0, packed.predictors, upstream.double().abs())
    half_unit = torch.finfo(torch.bfloat16).eps / 2
    single = size * responses * torch.finfo(torch.float32).eps
    allowed = half_unit * exact.abs() + single
    assert ((ours.double() - exact).abs() <= allowed).all()
    rounded = torch.zeros_like(states)  # after each of them, as additions in bfloat16 are
    for row, gradient in zip(packed.predictors.tolist(), upstream, strict=True):
        rounded[row] += gradient
    assert ((rounded.double() - exact).abs() > allowed).any()


def test_the_sum_has_one_order(device) -> None:
    """The float32 sum in the order of the index, bit for bit, whatever the number of threads."""
    torch.manual_seed(0)
    index = torch.randint(0, 50, (4000,), device=device)
    states = torch.randn(50, WIDTH, device=device)
    upstream = torch.randn(4000, WIDTH, device=device) * 10 ** torch.randn(4000, 1, device=device)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = [gradients(gather_rows, states, index, upstream) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], again) for again in found)
    one_by_one = torch.zeros(50, WIDTH)
    for row, gradient in zip(index.tolist(), upstream.cpu(), strict=True):
        one_by_one[row] += gradient
    if device.type == "cpu":
        assert torch.equal(found[0], one_by_one)


def test_gradients_by_finite_differences() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 2, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda rows: gather_rows(rows, index), x)
