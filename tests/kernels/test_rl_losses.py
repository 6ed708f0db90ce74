"""The importance-ratio losses of examples/rl_losses.py against full logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modules import load

FILE = Path(__file__).parents[2] / "examples" / "rl_losses.py"


def by_full_logits(name: str, hidden: Tensor, weight: Tensor, target: Tensor, *rest: Any) -> Tensor:
    old, advantage = rest
    counts = (target != -100).double()
    logs = (hidden @ weight.t()).log_softmax(-1)
    logp = logs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    lengths = counts.sum(1).clamp(min=1)
    if name == "grpo":
        ratio, a = (logp - old).exp(), advantage[:, None]
        gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        gain = gain - 0.01 * (logs.exp() * logs).sum(-1)
        return -((gain * counts).sum(1) / lengths).mean()
    ratio = (((logp - old) * counts).sum(1) / lengths).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_value_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(5, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(29, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 29, (5, 7))
    target[:, :2] = -100
    target[3] = -100
    with torch.no_grad():
        logs = (hidden @ weight.t()).log_softmax(-1)
        old = logs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        old = old + 0.3 * torch.randn(5, 7, dtype=torch.float64)  # some ratios are clipped
    arguments = (hidden, weight, target, old, torch.tensor([1.0, -1.0, 0.5, 2.0, -0.3]).double())
    module = load(FILE)
    ours = (
        module.grpo_loss(*arguments, entropy_bonus=0.01)
        if name == "grpo"
        else module.gspo_loss(*arguments, clip=0.1)
    )
    plain = by_full_logits(name, *arguments)
    torch.testing.assert_close(ours, plain)
    grads = [torch.autograd.grad(x, (hidden, weight)) for x in (ours, plain)]
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0][0].abs().sum() > 0
