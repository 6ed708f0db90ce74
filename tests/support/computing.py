"""A module that computes as it is imported, as a plugin may; its work needs all threads."""

from __future__ import annotations

import torch

SIZE = 512
torch.ones(SIZE, SIZE) @ torch.ones(SIZE, SIZE)


def product(threads: int) -> None:
    """A product that is spread over threads."""
    assert torch.get_num_threads() == threads
    assert (torch.ones(SIZE, SIZE) @ torch.ones(SIZE, SIZE)).sum() == SIZE**3


if __name__ == "__main__":
    import computing
    from comal_fast.system.processes import run_apart

    for _ in range(2):
        run_apart(computing.product, torch.get_num_threads())
    print("done")
