"""Imported first by a server that phases fork from: it computes on one thread.

A process that has run a pool of OpenMP threads can't be forked: in the child the pool is there by
name alone, and the first large product waits for it for ever. What is imported may compute a little
(a loss's derivative is checked when it is registered), so the pool must not come up before.
"""

from __future__ import annotations

import torch

_OWN = torch.get_num_threads()
torch.set_num_threads(1)


def all_threads() -> None:
    """In the child: as many as a process of its own would have."""
    torch.set_num_threads(_OWN)
