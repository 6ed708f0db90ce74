"""States in halves with a head in float32, as autocast and FSDP2's mixed precision make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comal_kernels import linear_logprob, prox_loss

T, H, V = 12, 16, 40


def loss_of_logp(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor) -> Tensor:
    return linear_logprob(hidden, weight, target, bias=bias).sum()


def loss_of_entropy(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor) -> Tensor:
    found = linear_logprob(hidden, weight, target, bias=bias, outputs=("logp", "entropy"))
    assert found.logp is not None and found.entropy is not None
    return (found.logp + found.entropy).sum()


def loss_of_pairs(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor) -> Tensor:
    bounds, first = torch.tensor([0, 3, 7, 9, 12], dtype=torch.int32), torch.arange(2)
    pairs: dict[str, Any] = {"chosen": first, "rejected": first + 2, "ref_logp": torch.zeros(4)}
    pairs["loss_scale"] = 1.0
    return prox_loss(hidden, weight, target, bounds, loss="dpo", beta=0.1, bias=bias, **pairs).loss


@pytest.mark.parametrize("loss", [loss_of_logp, loss_of_entropy, loss_of_pairs])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_is_taken_in_the_dtype_of_the_states(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    hidden, target = torch.randn(T, H).to(dtype), torch.randint(V, (T,))
    weight, bias = torch.randn(V, H), torch.randn(V)
    results = []
    for kept in (torch.float32, dtype):
        h, w, b = (x.detach().clone().requires_grad_() for x in (hidden, weight.to(kept), bias))
        value = loss(h, w, target, b.to(kept))
        value.backward()
        assert w.grad is not None and b.grad is not None and h.grad is not None
        assert w.grad.dtype == kept and b.grad.dtype == torch.float32
        results.append((value, h.grad, w.grad.float(), b.grad))
    for mixed, alike in zip(*results, strict=True):
        torch.testing.assert_close(mixed, alike, rtol=0, atol=0)
