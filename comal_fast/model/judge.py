"""Models that judge: how they are loaded, and conversations as they were trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import cached_file

from comal_fast.config.oracle import JudgeConfig
from comal_fast.data.conversation import Messages, answered
from comal_fast.data.template import Refused, render
from comal_fast.errors import InputError
from comal_fast.model.adapters import nf4
from comal_fast.model.head import check_head
from comal_fast.model.load import (
    find_source,
    keep_soft_cap,
    load_pretrained,
    pick_device,
    weight_files,
    weight_options,
)
from comal_fast.store.files import hash_files

OPTION = "oracle.model"
_HEADS = ("score", "classifier")  # what transformers calls them; never in 4 bits
_INDEX = "model.safetensors.index.json"


def source_key(options: JudgeConfig) -> str:
    """What tells the weights: a hash of a folder's files, or a hub name and its revision."""
    source = find_source(options.model, OPTION)
    files = weight_files(source, _gguf(options))
    if files:
        return hash_files(files)
    return " ".join([f"{source}@{options.revision or 'main'}", *filter(None, [_gguf(options)])])


def is_folder(options: JudgeConfig) -> bool:
    """Whether the weights are here already."""
    return Path(find_source(options.model, OPTION)).is_dir()


def load_reader(options: JudgeConfig) -> Any:
    """The model's tokenizer."""
    source = find_source(options.model, OPTION)
    return load_pretrained(AutoTokenizer, source, _common(options), OPTION)


def read_config(options: JudgeConfig) -> Any:
    """transformers' configuration alone: no weights are read."""
    return load_pretrained(AutoConfig, find_source(options.model, OPTION), _common(options), OPTION)


def load_classifier(options: JudgeConfig) -> Any:
    """The sequence classifier in eval mode, on its device.

    Raises InputError for one that can't be loaded, or whose head is not among its weights.
    """
    model, missing = _load(AutoModelForSequenceClassification, options, _HEADS)
    if missing:
        raise InputError(
            f"{OPTION} {options.model}: no weights of {', '.join(missing[:3])} in it, so it is no "
            "reward model; give one trained for sequence classification"
        )
    return model


def load_language_model(options: JudgeConfig) -> Any:
    """The causal language model in eval mode, on its device.

    Raises InputError for one that can't be loaded, or whose head over words is not reproduced.
    """
    model, _ = _load(AutoModelForCausalLM, options, None)
    check_head(model, options.model)
    return model


@dataclass(frozen=True)
class Headed:
    """A model without a head over words, and weights that lie beside it."""

    model: Any
    heads: Mapping[str, Tensor]
    """By their names in the file."""


def load_headed(
    options: JudgeConfig, wanted: Sequence[str], *more: str, prefix: str | None = None
) -> Headed:
    """The base model in eval mode, with the weights `wanted`, and `more` where they are there.

    `prefix`: what the file puts before the base model's names, where it is not transformers' own.
    Raises InputError where a weight is not there.
    """
    renamed = {} if prefix is None else {"key_mapping": {f"^{re.escape(prefix)}": ""}}
    model, missing = _load(AutoModel, options, (), **renamed)
    if missing:
        raise InputError(f"{OPTION} {options.model}: no weights of {', '.join(missing[:3])} in it")
    heads = _weights(options, [*wanted, *more])
    if absent := [name for name in wanted if name not in heads]:
        raise InputError(f"{OPTION} {options.model}: no weights {', '.join(absent)} in it")
    return Headed(model, {name: t.to(model.device) for name, t in heads.items()})


def positions(model: Any) -> int | None:
    """Most tokens of a sequence for a model that learned a vector for each position; else None."""
    model = model.model if isinstance(model, Headed) else model
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("position_embeddings", "wpe", "embed_positions") and isinstance(
            module, torch.nn.Embedding
        ):
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - before
    return None


def template_text(
    tokenizer: Any, messages: Messages, response: str | None = None, **how: Any
) -> str:
    """The conversation, with the response to it, in the tokenizer's own chat template.

    Raises InputError where it has none, or refuses.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{OPTION}: the tokenizer of the judge has no chat template")
    said = messages if response is None else answered(messages, response)
    try:
        return render(tokenizer, said, **how)
    except Refused as error:
        raise InputError(
            f"{OPTION}: its chat template refuses a conversation of "
            f"{', '.join(message.role for message in said)} ({error})"
        ) from None


def conversation_ids(tokenizer: Any, messages: Messages, response: str) -> list[int]:
    """Token ids of the whole conversation; the template writes every special token itself."""
    text = template_text(tokenizer, messages, response)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _load(
    auto: Any, options: JudgeConfig, spared: Sequence[str] | None, **more: Any
) -> tuple[Any, list[str]]:
    """(the model in eval mode on its device, the weights it did not find)."""
    source = find_source(options.model, OPTION)
    device, dtype = pick_device(options.device, "oracle.device"), getattr(torch, options.dtype)
    wanted = _common(options) | {"dtype": dtype, "output_loading_info": True} | more
    quantized = options.quantization == "nf4"
    if quantized:
        wanted |= {"quantization_config": nf4(dtype, spared), "device_map": {"": str(device)}}
    wanted |= weight_options(source, options.pickled_weights, _gguf(options), OPTION)
    model, seen = load_pretrained(auto, source, wanted, OPTION)
    keep_soft_cap(model)
    return (model if quantized else model.to(device)).eval(), sorted(seen["missing_keys"])


def _weights(options: JudgeConfig, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the weights that the model's safetensors files hold."""
    source = find_source(options.model, OPTION)
    files: dict[str, list[str]] = {}
    try:
        revision = {"revision": options.revision} if options.revision else {}
        index = cached_file(source, _INDEX, _raise_exceptions_for_missing_entries=False, **revision)
        if index is None:
            files["model.safetensors"] = list(names)
        else:
            shards = json.loads(Path(index).read_text())["weight_map"]
            for name in names:
                if name in shards:
                    files.setdefault(shards[name], []).append(name)
        found: dict[str, Tensor] = {}
        for file, inside in files.items():
            path = cached_file(source, file, **revision)
            with safe_open(path, framework="pt") as weights:
                there = set(weights.keys())
                found |= {name: weights.get_tensor(name) for name in inside if name in there}
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{OPTION} {options.model}: its heads can't be read: {first}") from None
    return found


def _gguf(options: JudgeConfig) -> str | None:
    return getattr(options, "gguf_file", None)


def _common(options: JudgeConfig) -> dict[str, Any]:
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if options.revision:
        common["revision"] = options.revision
    if file := _gguf(options):
        common["gguf_file"] = file
    return common
