"""A head sharded by FSDP2 over two processes gives what one process gives for both batches."""

import subprocess
import sys
from pathlib import Path

import pytest

import comal_kernels

RANK = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from comal_kernels import linear_logprob, prox_loss

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
head = torch.nn.Linear(5, 11)
whole = torch.nn.Linear(5, 11)
whole.load_state_dict(head.state_dict())
fully_shard(head, mesh=init_device_mesh("cpu", (2,)))
assert isinstance(head.weight, DTensor)
hidden = torch.randn(2, 12, 5)
target = torch.randint(0, 11, (2, 12))
cu = torch.tensor([0, 3, 6, 9, 12])

def losses(weight, bias, i):
    pairs = {"chosen": torch.tensor([0, 2]), "rejected": torch.tensor([1, 3])}
    out = prox_loss(hidden[i], weight, target[i], cu, bias=bias, loss="ipo", eta=0.1,
                    ref_logp=torch.zeros(4), **pairs)
    return out.loss + linear_logprob(hidden[i], weight, target[i], bias=bias).sum()

losses(head.weight, head.bias, rank).backward()
(losses(whole.weight, whole.bias, 0) / 2 + losses(whole.weight, whole.bias, 1) / 2).backward()
for ours, want in ((head.weight, whole.weight), (head.bias, whole.bias)):
    assert isinstance(ours.grad, DTensor) and ours.grad.placements == ours.placements
    torch.testing.assert_close(ours.grad.full_tensor(), want.grad)
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an orderly exit
"""


@pytest.mark.slow
def test_two_processes(tmp_path) -> None:
    path = str(Path(comal_kernels.__file__).parents[1])
    url = f"file://{tmp_path}/rendezvous"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), url],
            env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
