"""A reward model: a sequence classifier, its tokenizer, and conversations as it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from comal_fast.config.oracle import JudgeConfig
from comal_fast.data.prompts import Messages
from comal_fast.errors import InputError
from comal_fast.model.adapters import nf4
from comal_fast.model.load import find_source, load_pretrained, pick_device, weight_files
from comal_fast.store.artefacts import hash_files

OPTION = "oracle.model"
_HEADS = ("score", "classifier")  # what transformers calls them; never in 4 bits


def source_key(options: JudgeConfig) -> str:
    """What tells the weights: a hash of a folder's files, or a hub name and its revision."""
    source = find_source(options.model, OPTION)
    files = weight_files(source, None)
    return hash_files(files) if files else f"{source}@{options.revision or 'main'}"


def load_reader(options: JudgeConfig) -> Any:
    """The model's tokenizer."""
    source = find_source(options.model, OPTION)
    return load_pretrained(AutoTokenizer, source, _common(options), OPTION)


def load_classifier(options: JudgeConfig) -> Any:
    """The sequence classifier in eval mode, on its device.

    Raises InputError for one that can't be loaded, or whose head is not among its weights.
    """
    source = find_source(options.model, OPTION)
    device, dtype = pick_device(options.device, "oracle.device"), getattr(torch, options.dtype)
    wanted = _common(options) | {"dtype": dtype, "output_loading_info": True}
    if options.quantization == "nf4":
        wanted |= {"quantization_config": nf4(dtype, _HEADS), "device_map": {"": str(device)}}
    model, seen = load_pretrained(AutoModelForSequenceClassification, source, wanted, OPTION)
    if missing := sorted(seen["missing_keys"]):
        raise InputError(
            f"{OPTION} {options.model}: no weights of {', '.join(missing[:3])} in it, so it is no "
            "reward model; give one trained for sequence classification"
        )
    return (model if options.quantization == "nf4" else model.to(device)).eval()


def conversation_ids(tokenizer: Any, messages: Messages, response: str) -> list[int]:
    """Token ids of the whole conversation through the tokenizer's own chat template.

    The template writes every special token itself. Raises InputError where it refuses.
    """
    turns = [{"role": r, "content": c} for r, c in (*messages, ("assistant", response))]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise InputError(
            f"{OPTION}: its chat template refuses a conversation of "
            f"{', '.join(turn['role'] for turn in turns)} "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _common(options: JudgeConfig) -> dict[str, Any]:
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    return common | ({"revision": options.revision} if options.revision else {})


def is_folder(options: JudgeConfig) -> bool:
    """Whether the weights are here already."""
    return Path(find_source(options.model, OPTION)).is_dir()
