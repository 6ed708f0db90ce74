"""A packed pass through layers with kernels, on a CUDA device that is not there.

layers_driver.py OUT.json    relative distance of outputs and gradients from float32
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comal_fast.model.liger import use_liger
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.integrations.transformers.packed import packed_attention
from comal_kernels.packing import PromptResponse, pack
from tiny import tiny_model

SEQUENCES = [
    PromptResponse([1, 2, 3, 4], [5, 6, 7]),
    PromptResponse([1, 2, 3, 4], [8, 9]),
    PromptResponse([3, 2], [8, 9, 10, 11]),
]


def outcome(requested: str, fuse_residual: bool, dtype: torch.dtype, seed: int) -> Any:
    """Return the states that the head sees and the layers' gradients, and the layers' norms."""
    device = torch.device("cuda")
    torch.manual_seed(seed)
    model = use_liger(tiny_model().to(device, dtype), requested, device, fuse_residual)
    with packed_attention(model, "sdpa"):
        states = predictor_states(model, pack(SEQUENCES, device))
    weights = [p for name, p in model.named_parameters() if "layers" in name]
    # an upstream gradient at random: that of a norm's squared length is nothing but rounding
    upstream = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad(states, weights, upstream.to(device, dtype))
    norm = model.model.layers[0].post_attention_layernorm
    return [x.detach().cpu().double() for x in (states, *gradients)], norm.forward.__name__


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest relative distance of a tensor from what it should be."""
    pairs = zip(found, wanted, strict=True)
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def main() -> int:
    out: dict[str, Any] = {}
    for seed in range(3):  # transformers' own layers first: Liger's kernels stay in its modules
        exact, _ = outcome("off", False, torch.float32, seed)
        stock, name = outcome("off", False, torch.bfloat16, seed)
        out[f"stock {seed}"] = {"norm": name, "distance": distance(stock, exact)}
        out[f"seed {seed}"] = exact
    for seed in range(3):
        exact = out.pop(f"seed {seed}")
        for kind, fuse_residual in (("Liger", False), ("fused", True)):
            found, name = outcome("auto", fuse_residual, torch.bfloat16, seed)
            out[f"{kind} {seed}"] = {"norm": name, "distance": distance(found, exact)}
    Path(sys.argv[1]).write_text(json.dumps(out))
    return 0


if __name__ == "__main__":
    os._exit(main())  # threads of the device that is not there outlive the interpreter
