"""The sizes of a model: of well-known ones from a table, of others from their configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError


@dataclass(frozen=True)
class Shape:
    """A decoder's matrices. `family`: transformers' `model_type`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    family: str = "llama"
    rope_theta: float = 500000.0

    @property
    def queries(self) -> int:
        """Width of the queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Matrix parameters of one block."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def block_parameters(self) -> int:
        """Matrix parameters of all blocks."""
        return self.layers * self.layer_parameters

    @property
    def head_parameters(self) -> int:
        """Parameters of the head, and of the embedding: tied or not, each is as large."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters: embeddings, blocks, norms, and the head where it is not tied."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.block_parameters + norms + self.head_parameters * (1 if self.tied else 2)

    def config(self, layers: int | None = None, **options: Any) -> Any:
        """transformers' configuration of this shape, with as many layers as given."""
        from transformers import AutoConfig

        sizes = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": layers or self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "use_cache": False,
            "pad_token_id": None,
        }
        return AutoConfig.for_model(self.family, **{**sizes, **options})


def _row(family: str, tied: bool, vocab: int, *sizes: int, rope_theta: float = 5e5) -> Shape:
    layers, hidden, intermediate, heads, kv_heads, head_dim = sizes
    shape = (layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied)
    return Shape(*shape, family, rope_theta)


KNOWN = {  # by short_name
    "smollm2-135m": _row("llama", True, 49152, 30, 576, 1536, 9, 3, 64, rope_theta=1e5),
    "smollm2-360m": _row("llama", True, 49152, 32, 960, 2560, 15, 5, 64, rope_theta=1e5),
    "smollm2-1.7b": _row("llama", True, 49152, 24, 2048, 8192, 32, 32, 64, rope_theta=1e5),
    "llama-3.2-1b": _row("llama", True, 128256, 16, 2048, 8192, 32, 8, 64),
    "llama-3.2-3b": _row("llama", True, 128256, 28, 3072, 8192, 24, 8, 128),
    "llama-3-8b": _row("llama", False, 128256, 32, 4096, 14336, 32, 8, 128),
    "llama-3-70b": _row("llama", False, 128256, 80, 8192, 28672, 64, 8, 128),
    "codellama-34b": _row("llama", False, 32000, 48, 8192, 22016, 64, 8, 128),
    "qwen2.5-0.5b": _row("qwen2", True, 151936, 24, 896, 4864, 14, 2, 64),
    "qwen2.5-1.5b": _row("qwen2", True, 151936, 28, 1536, 8960, 12, 2, 128),
    "qwen2.5-3b": _row("qwen2", True, 151936, 36, 2048, 11008, 16, 2, 128),
    "qwen2.5-7b": _row("qwen2", False, 152064, 28, 3584, 18944, 28, 4, 128),
    "qwen2.5-14b": _row("qwen2", False, 152064, 48, 5120, 13824, 40, 8, 128),
    "qwen2.5-32b": _row("qwen2", False, 152064, 64, 5120, 27648, 40, 8, 128),
    "qwen2.5-72b": _row("qwen2", False, 152064, 80, 8192, 29568, 64, 8, 128),
    "qwen3-0.6b": _row("qwen3", True, 151936, 28, 1024, 3072, 16, 8, 128),
    "qwen3-1.7b": _row("qwen3", True, 151936, 28, 2048, 6144, 16, 8, 128),
    "qwen3-4b": _row("qwen3", True, 151936, 36, 2560, 9728, 32, 8, 128),
    "qwen3-8b": _row("qwen3", False, 151936, 36, 4096, 12288, 32, 8, 128),
    "qwen3-14b": _row("qwen3", False, 151936, 40, 5120, 17408, 40, 8, 128),
    "qwen3-32b": _row("qwen3", False, 151936, 64, 5120, 25600, 64, 8, 128),
    "mistral-7b": _row("mistral", False, 32768, 32, 4096, 14336, 32, 8, 128),
    "gemma-2-2b": _row("gemma2", True, 256000, 26, 2304, 9216, 8, 4, 256),
    "gemma-2-9b": _row("gemma2", True, 256000, 42, 3584, 14336, 16, 8, 256),
    "gemma-2-27b": _row("gemma2", True, 256000, 46, 4608, 36864, 32, 16, 128),
    "phi-3-mini": _row("phi3", False, 32064, 32, 3072, 8192, 32, 32, 96),
}
SAME = {
    "llama-3.1-8b": "llama-3-8b",
    "llama-3.1-70b": "llama-3-70b",
    "llama-3.3-70b": "llama-3-70b",
}
# families whose layers `trace.py` is tested on
PLANNED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite"}


class Unplanned(InputError):
    """A model whose memory this package can't count; it may train all the same."""


def short_name(name: str) -> str:
    """meta-llama/Meta-Llama-3-8B-Instruct → llama-3-8b, the key in KNOWN."""
    text = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    text = re.sub(r"-(instruct|it|chat|base|4k|128k|v0\.\d|hf)(?=-|$)", "", text)
    return SAME.get(text, text)


def shape_of(config: Any) -> Shape:
    """The shape that transformers' `config` of a decoder gives. Unplanned for other families."""
    config = config.get_text_config()
    if config.model_type not in PLANNED:
        known = ", ".join(sorted(PLANNED))
        raise Unplanned(f"models of type {config.model_type} can't be planned; known: {known}")
    hidden, heads = config.hidden_size, config.num_attention_heads
    return Shape(
        config.num_hidden_layers,
        hidden,
        config.intermediate_size,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or hidden // heads,
        config.vocab_size,
        bool(config.tie_word_embeddings),
        config.model_type,
    )


def read_shape(model: Any) -> Shape:
    """The shape of a `ModelConfig`: from the folder or package it names, the table, or the hub.

    Raises InputError, one line, where none of them knows it.
    """
    from comal_fast.model.load import model_config, resolve_source

    known = KNOWN.get(short_name(model.name_or_path))
    name = model.name_or_path
    local = name.startswith(("package:", ".", "/", "~")) or Path(name).is_dir()
    if known is not None and not local:
        return known
    try:
        config = model_config(model, resolve_source(model))
    except InputError as error:
        if local:
            raise
        raise InputError(f"{error} (known without a hub: {', '.join(KNOWN)})") from None
    return shape_of(config)
