"""How many rows of logits a chunk may hold."""

from __future__ import annotations

import torch

MIB = 1 << 20
ALIGNED_ROWS = 16  # 64 bytes of float32: a CPU's product is a third slower into odd rows
DEFAULT_WORKSPACE = {"cpu": 128 * MIB, "cuda": 1024 * MIB}


def chunk_rows(workspace: int | None, vocab: int, itemsize: int, device: torch.device) -> int:
    """Rows of logits that fit in `workspace` bytes, in whole lines of cache: at least one."""
    budget = DEFAULT_WORKSPACE.get(device.type, 128 * MIB) if workspace is None else workspace
    rows = max(1, budget // (vocab * itemsize))
    return rows if rows < ALIGNED_ROWS else rows - rows % ALIGNED_ROWS


def aligned(rows: int) -> int:
    """`rows` rounded up to whole lines of cache; as it is where it is less than one."""
    return rows if rows < ALIGNED_ROWS else -(-rows // ALIGNED_ROWS) * ALIGNED_ROWS
