"""Tiny reward models in folders, and the reward that transformers itself gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comal_fast.data.prompts import Messages
from tiny import byte_tokenizer, tiny_config


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
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    turns = [{"role": r, "content": c} for r, c in (*messages, ("assistant", response))]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])
