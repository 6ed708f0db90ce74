"""Checkpoints inside an iteration by DCP: written by any number of ranks, read by any other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from comal_fast.distributed.group import broadcast, wait
from comal_fast.distributed.reading import Planner, Reader
from comal_fast.store.artefacts import Folder
from comal_fast.system.ranks import rank, world

_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


@contextmanager
def write_together(folder: Folder, key: str) -> Iterator[Path]:
    """Yield, on every rank, the folder that rank 0's `folder.write` makes; all write into it."""
    with folder.write(key) if rank() == 0 else nullcontext() as temporary:
        yield broadcast(temporary)
        wait()


@contextmanager
def _plainly() -> Iterator[dict[str, bool]]:
    """Yield DCP's option for a single process, without its warning that there is only one.

    What went wrong is raised itself, Ctrl-C too, not in DCP's wrapping, a BaseException.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield {"no_dist": world() == 1}
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise causes[0] if causes else RuntimeError(str(error)) from None


def save(folder: Path, model: Any, optimizer: Any) -> None:
    """Write what is trained, and its moments, into `folder`; all ranks call it."""
    with _plainly() as option:
        state = _state(*get_state_dict(model, optimizer, options=_TRAINED))
        dcp.save(state, checkpoint_id=folder, **option)


def load(folder: Path, model: Any, optimizer: Any) -> None:
    """Read what is trained, and its moments, from `folder`, in place; all ranks call it.

    Whichever AdamW wrote them, in the same dtypes: torch's counts steps in tensors, ours in ints.
    """
    weights, groups_and_state = get_state_dict(model, optimizer, options=_TRAINED)
    own: Any = groups_and_state
    state = _state(weights, own)
    stored = Reader(folder).read_metadata().state_dict_metadata
    counts = {name: entry["step"] for name, entry in own["state"].items()}
    for name, count in counts.items():
        kept = stored.get(f"optimizer.state.{name}.step")
        if isinstance(kept, BytesStorageMetadata) == isinstance(count, Tensor):  # the other's
            own["state"][name]["step"] = 0 if isinstance(count, Tensor) else torch.zeros(())
    with _plainly() as option:
        dcp.load(state, storage_reader=Reader(folder), planner=Planner(), **option)
    for name, count in counts.items():
        entry = state["optimizer"]["state"][name]
        if isinstance(count, Tensor):
            entry["step"] = torch.as_tensor(entry["step"], dtype=count.dtype, device=count.device)
        else:
            entry["step"] = int(entry["step"])
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict={**own, **state["optimizer"]},
        options=_TRAINED,
    )


def _state(weights: dict[str, Any], moments: Any) -> dict[str, Any]:
    """What is stored; of an optimiser its state, since its groups are the configuration's."""
    return {"model": weights, "optimizer": {"state": moments["state"]}}
