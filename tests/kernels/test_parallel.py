"""A head whose words are parted among two processes gives what the whole head gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from comal_kernels import linear_logprob
from launch import torchrun

SIZES = (7, 4)  # words of each rank
NAMES = ("logp", "entropy", "lse", "mean_logit", "top1", "topk")
HEADS = ({}, {"softcap": 3.0, "logit_scale": 0.5, "temperature": 0.7})


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 6, 5).double(), torch.randn(sum(SIZES), 5).double()
    weight[9] = weight[2]  # equals on two ranks: the first is the likeliest
    target = torch.randint(sum(SIZES), (2, 6))
    target[0, :2], target[1, 3] = -100, 9
    return hidden, weight, torch.randn(sum(SIZES)).double(), target


def loss(out: object) -> Tensor:
    parts = (getattr(out, name) for name in ("logp", "entropy", "lse", "mean_logit", "topk"))
    return sum(((i + 1.0) * x.square().sum() for i, x in enumerate(parts)), torch.zeros(()))


def rank() -> None:
    """What a process checks."""
    dist.init_process_group("gloo")
    number = dist.get_rank()
    start = sum(SIZES[:number])
    mine = slice(start, start + SIZES[number])
    hidden, weight, bias, target = problem()
    for options in HEADS:
        for k in (1, 3, 9):
            whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
            part = [x.detach().clone().requires_grad_() for x in (hidden, weight[mine], bias[mine])]
            results = [
                linear_logprob(h, w, target, bias=b, outputs=NAMES, k=k, group=group, **options)
                for (h, w, b), group in ((whole, None), (part, dist.group.WORLD))
            ]
            for name in (*NAMES, "topk_ids"):
                a, b = (getattr(x, name) for x in results)
                torch.testing.assert_close(b, a, msg=lambda text, n=name: f"{n}: {text}")
            for found in results:
                loss(found).backward()
            torch.testing.assert_close(part[0].grad, whole[0].grad)
            for a, b in zip(part[1:], whole[1:], strict=True):
                torch.testing.assert_close(a.grad, b.grad[mine])
    sums = linear_logprob(
        hidden, weight[mine], target, bias=bias[mine], reduction="sum", group=dist.group.WORLD
    )
    torch.testing.assert_close(
        sums, linear_logprob(hidden, weight, target, bias=bias, reduction="sum")
    )
    try:
        linear_logprob(hidden, weight[mine], target + 200, group=dist.group.WORLD)
    except ValueError as error:
        assert str(error).startswith("target: an id that no rank's weight holds"), error
    else:
        raise AssertionError("not refused")
    dist.barrier()


@pytest.mark.slow
def test_two_ranks() -> None:
    done = torchrun(Path(__file__))
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    rank()
