"""Stochastic rounding keeps the mean, and what bfloat16 holds; small updates arrive."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.optim import AdamW
from comal_fast.optim.rounding import round_stochastically

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    round_stochastically(out, x.clone(), torch.Generator().manual_seed(seed))
    return out


@given(st.lists(FINITE, min_size=1, max_size=50), st.integers(0, 2**40))
def test_to_a_neighbour_and_unchanged_where_exact(numbers: list[float], seed: int) -> None:
    x = torch.tensor(numbers)
    y = rounded(x, seed)
    down = (x.view(torch.int32) & -(1 << 16)).view(torch.float32)  # towards zero
    up = ((x.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    exact = down == x
    assert torch.equal(y.float()[exact], x[exact])
    assert ((y.float() == down) | (y.float() == up)).all()
    assert torch.equal(torch.signbit(y), torch.signbit(x))


def test_infinities_and_nan_stay() -> None:
    all_ones = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32)
    x = torch.cat([torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]), all_ones])
    for seed in range(20):
        y = rounded(x, seed)
        assert torch.equal(y[:2].float(), x[:2])
        assert y[[2, 5, 6]].isnan().all()
        assert (y[3:5] == 0).all() and torch.signbit(y[4])


@settings(max_examples=50, deadline=None)
@given(FINITE, st.integers(0, 2**40))
def test_unbiased(number: float, seed: int) -> None:
    """The farther neighbour is drawn as often as x is near to it: within 6 deviations and 20."""
    x = torch.full((1 << 14,), number)
    share = (x.view(torch.int32)[0].item() & 0xFFFF) / 2**16  # from the nearer zero to the other
    down = (x.view(torch.int32) & -(1 << 16)).view(torch.float32)
    drawn = (rounded(x, seed).float() != down).sum().item()
    expected, n = len(x) * share, len(x)
    assert abs(drawn - expected) <= 6 * math.sqrt(n * share * (1 - share)) + 20


@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_small_updates_arrive_only_with_it(state: str) -> None:
    """A thousand AdamW steps of 1e-5 on weights at 1, where bfloat16 steps by 2⁻⁸ downwards."""
    if state == "8bit":
        pytest.importorskip("bitsandbytes")

    def train(stochastic_rounding: bool) -> torch.Tensor:
        weights = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = AdamW([weights], lr=1e-5, state=state, stochastic_rounding=stochastic_rounding)
        for step in range(1000):
            optimizer.param_groups[0]["seed"] = 10_000 + step
            weights.grad = torch.ones_like(weights)
            optimizer.step()
        return weights.detach().double()

    assert torch.equal(train(False), torch.ones(4096, dtype=torch.float64))  # every one was lost
    moved = 1 - train(True).mean().item()
    assert moved == pytest.approx(0.01, rel=0.05)
