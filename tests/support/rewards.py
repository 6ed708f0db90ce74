"""Tiny reward models in folders, what they are asked, and what transformers itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comal_fast.data.conversation import Message, Messages, answered
from tiny import byte_tokenizer, tiny_config

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0},
    "mistral": {"sliding_window": 7},
}
ASKED: list[tuple[Messages, list[str]]] = [
    (
        (Message("user", "What is two and two?"),),
        ["Four.", "Four", "", "Five, or so I was told.", "Fo"],
    ),
    (
        (
            Message("system", "Be brief."),
            Message("user", "Ä?"),
            Message("assistant", "Ö."),
            Message("user", "?"),
        ),
        ["Ü", "no"],
    ),
    ((Message("user", "x"),), ["a single response"]),
]


def reward_model(family: str = "llama", *, seed: int = 0, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(family, **{"num_labels": 1, **options})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def save_reward(folder: Path, family: str = "llama", *, seed: int = 0, **options: Any) -> Path:
    """A folder with a random reward model and the byte tokenizer."""
    reward_model(family, seed=seed, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def plain_reward(folder: Path, messages: Messages, response: str) -> float:
    """Of one conversation, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    turns = [m.to_dict() for m in answered(messages, response)]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def pair_tokenizer(*more: str) -> Any:
    """The byte tokenizer as encoders have theirs: [0] a [1] b [1], texts told apart, no chat.

    `more`: further special tokens.
    """
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    first, last = tokenizer.convert_ids_to_tokens([0, 1])
    tokenizer.add_special_tokens({"cls_token": first, "sep_token": last})
    tokenizer.add_tokens(list(more), special_tokens=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, 0), (last, 1)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def save_pair_tokenizer(folder: Path, *more: str) -> Any:
    """Write it to a folder, and return it. transformers saves no `model_input_names`."""
    tokenizer = pair_tokenizer(*more)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    names = {"model_input_names": tokenizer.model_input_names}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    return tokenizer
