"""The process group: messages between ranks, and how a run of many ranks ends.

A rank that fails claims the failure in the store that torchrun keeps: the first claim is told, what
then breaks on the other ranks is its consequence and silent. torchrun ends those that wait.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from comal_fast.system.ranks import rank, world

_FAILURE = "comal-fast failure"
_ORDERLY = (0, 3)  # exit statuses after which the ranks end together; others leave the group broken
_PATIENCE = timedelta(days=365)  # while another rank judges, say; torchrun ends those that wait
_control: Any = None  # the group of messages: gloo, on the CPU
_store: Any = None


def start() -> None:
    """Join the group; every rank calls it once, first of all."""
    global _control, _store
    _store, _, _ = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=rank(), world_size=world())
    _control = dist.new_group(backend="gloo", timeout=_PATIENCE)


def claim_failure() -> bool:
    """Whether this rank is the first that fails, and so the one that says why."""
    if world() == 1:
        return True
    mine = str(rank()).encode()
    return bool(_store.compare_set(_FAILURE, "", str(rank())) == mine)


def run_rank(work: Callable[[], int]) -> int:
    """Run `work` as one of several ranks; returns its status. Does not return where it failed."""
    start()
    try:
        status = work()
    except Exception:
        status = 1
        if claim_failure():
            traceback.print_exc()
    if status not in _ORDERLY:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    wait()
    _leave()
    return status


def _leave() -> None:
    """Leave the group and let go of it, which joins its threads.

    One that frees a tensor while the interpreter ends would abort the process.
    """
    global _control, _store
    dist.destroy_process_group()
    _control = _store = None


def wait() -> None:
    """Return once all ranks are here."""
    if world() > 1:
        dist.barrier(_control)


def broadcast(message: Any) -> Any:
    """Rank 0's message, on every rank."""
    if world() == 1:
        return message
    box = [message]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def gather(message: Any) -> list[Any]:
    """On rank 0 the messages of all ranks, in order; nothing elsewhere."""
    if world() == 1:
        return [message]
    box: list[Any] = [None] * world()
    dist.gather_object(message, box if rank() == 0 else None, dst=0, group=_control)
    return box if rank() == 0 else []


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Each value summed over the ranks, which name the same values; on every rank."""
    if world() == 1:
        return dict(values)
    names = sorted(values)
    sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
    dist.all_reduce(sums, group=_control)
    total = dict(zip(names, sums.tolist(), strict=True))
    return {name: total[name] for name in values}
