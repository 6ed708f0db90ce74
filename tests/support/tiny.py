"""A tiny model that needs no hub: random weights, byte tokens, a real chat template."""

from __future__ import annotations

from typing import Any


def byte_tokenizer() -> Any:
    from comal_fast.lm_game.model import byte_tokenizer as make

    return make()


def tiny_config(family: str = "llama", **options: Any) -> Any:
    from transformers import AutoConfig

    sizes = {
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "eos_token_id": 0,
        "pad_token_id": 4,
        "bos_token_id": None,
    }
    if family == "gemma2":  # transformers 5.17 would take SDPA, which leaves out its soft cap
        sizes["attn_implementation"] = "eager"
    return AutoConfig.for_model(family, **{**sizes, **options})


def tiny_model(family: str = "llama", **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **options)).eval()
    for parameter in model.parameters():  # the default start is nearly uniform: too easy to match
        parameter.data.mul_(3)
    return model
