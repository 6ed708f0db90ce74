"""An objective in the forward of a model that DDP or FSDP2 wraps: the gradients of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from comal_kernels import prox_loss
from comal_kernels.integrations.transformers import LMHead, accept_objective, packed_attention
from comal_kernels.packing import PromptResponse, pack
from launch import torchrun
from tiny import tiny_model

WRAPS = ("ddp", "fsdp2", "fsdp2 in halves")


def batch(rank: int) -> list[PromptResponse]:
    a, b = [5, 6, 7 + rank], [9, 10, 11]
    return [PromptResponse(p, r) for r in ([20, 21], [22 + rank, 23, 24]) for p in (a, b)]


def call(model: Any, rank: int) -> Tensor:
    packed = pack(batch(rank))

    def objective(states: Tensor, head: LMHead) -> Tensor:
        bounds = packed.response_cu_seqlens
        out = prox_loss(
            states,
            target=packed.target,
            cu_seqlens=bounds,
            loss="ipo",
            eta=0.5,
            chosen=torch.tensor([0, 1]),
            rejected=torch.tensor([2, 3]),
            ref_logp=torch.zeros(4),
            **head.arguments(),
        )
        names = ("logp", "entropy", "lse", "topk")
        more = head.logprob(states, packed.target, outputs=names, k=3)
        return out.loss + more.entropy.sum() + more.lse.sum() + more.topk.sum()

    loss: Tensor = model(packed=packed, objective=objective)
    return loss


def wrapped(model: Any, how: str) -> Any:
    if how == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    halves = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    options: dict[str, Any] = {"mesh": init_device_mesh("cpu", (2,))}
    if "halves" in how:
        options["mp_policy"] = halves
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def rank() -> None:
    """What a process checks."""
    dist.init_process_group("gloo")
    for how in WRAPS:
        for tied in (False, True):
            whole, model = (tiny_model(tie_word_embeddings=tied) for _ in range(2))
            for m in (whole, model):
                accept_objective(m)
            with packed_attention(whole, "auto"):
                sum((call(whole, i) / 2 for i in range(2)), torch.zeros(())).backward()
            with packed_attention(model, "auto"):
                outer = wrapped(model, how)  # held: DDP's hooks end with it
                call(outer, dist.get_rank()).backward()
            for (name, x), y in zip(whole.named_parameters(), model.parameters(), strict=True):
                assert x.grad is not None and y.grad is not None and y.grad.dtype == torch.float32
                got = y.grad.full_tensor() if hasattr(y.grad, "full_tensor") else y.grad
                off = (got - x.grad).norm() / x.grad.norm()
                assert off < (0.1 if "halves" in how else 1e-5), (how, tied, name, off)
    dist.barrier()


@pytest.mark.slow
def test_two_ranks() -> None:
    done = torchrun(Path(__file__))
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    rank()
