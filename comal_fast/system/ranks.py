"""Who this process is under torchrun. Imports no torch."""

from __future__ import annotations

import os


def world() -> int:
    """The number of ranks: 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """This process's rank, 0 … world() − 1."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """The rank among those of this machine."""
    return int(os.environ["LOCAL_RANK"]) if world() > 1 else 0


def local_world() -> int:
    """The number of ranks on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1


def node() -> int:
    """The number of this machine, 0 … nodes() − 1."""
    return int(os.environ["GROUP_RANK"]) if world() > 1 else 0


def nodes() -> int:
    """The machines that the ranks run on."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if world() > 1 else 1


def is_main() -> bool:
    """Whether this is the rank that runs the loop and writes."""
    return rank() == 0
