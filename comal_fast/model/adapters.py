"""LoRA by peft: one frozen base in memory, and a module tree for each policy that rests on it.

A policy is a copy of the base's modules that shares every tensor of the base and adds an adapter of
its own. The base is the initial policy: its modules hold no adapter at all. So the reference, the
last iterate and the one in training exist side by side, none is switched on or off before use (no
caller can run the wrong adapter), and each is a plain transformers model to whatever takes one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from comal_fast.config.schema import LoraConfig, ModelConfig
from comal_fast.errors import InputError

WEIGHTS = "adapter_model.safetensors"
_ALL = "all-linear"
_PREFIX = "base_model.model."  # of names in peft's files


def is_adapter(folder: Path) -> bool:
    """Whether a model's folder holds an adapter alone."""
    return (folder / WEIGHTS).is_file()


def freeze(base: Any, lora: LoraConfig) -> Any:
    """`base`, no parameter of which will train; InputError for adapters that have no place in it.

    With the head frozen, prox_loss computes no dW.
    """
    head = base.get_output_embeddings()
    layers = {
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    for target in lora.target_modules:
        if target != _ALL and not any(f".{name}".endswith(f".{target}") for name in layers):
            known = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise InputError(
                f"model.lora.target_modules: {target} is none of the layers that can have an "
                f"adapter: {', '.join(known)}"
            )
    return base.requires_grad_(False)


def add_adapter(base: Any, config: ModelConfig, seed: int) -> Any:
    """A policy on the frozen `base` with a fresh adapter: B = 0, so it equals the base.

    The adapter is float32 where the base is narrower, as in peft; A is drawn from `seed`.
    """
    from peft import LoraConfig as PeftLora  # loads in seconds

    lora = config.lora
    assert lora is not None
    policy = copy.deepcopy(base, _shared(base))
    targets = lora.target_modules
    options = PeftLora(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_ALL if targets == [_ALL] else targets,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
        revision=config.revision,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy.add_adapter(options)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(wide)
    return policy


def load_adapter(base: Any, config: ModelConfig, folder: Path) -> Any:
    """The policy whose adapter `save_pretrained` wrote to `folder`.

    InputError where it is not what `config` asks for.
    """
    from peft import LoraConfig as PeftLora
    from peft import set_peft_model_state_dict

    policy = add_adapter(base, config, seed=0)
    wanted = policy.peft_config["default"]
    try:
        found, saved = PeftLora.from_pretrained(str(folder)), load_file(folder / WEIGHTS)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder}: its adapter can't be read ({first})") from None
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"):
        is_, asked = getattr(found, name), getattr(wanted, name)
        if is_ != asked:
            raise InputError(
                f"{folder}: its adapter has {name}={is_}, model.lora asks for {asked}; "
                "train that iteration again"
            )
    result: Any = set_peft_model_state_dict(
        policy, {name.removeprefix(_PREFIX): tensor for name, tensor in saved.items()}
    )
    absent = [name for name in result.missing_keys if ".lora_" in name]
    if absent or result.unexpected_keys:
        raise InputError(
            f"{folder / WEIGHTS}: not an adapter of this model; "
            f"it lacks or should not have {(absent + list(result.unexpected_keys))[0]}"
        )
    return policy.eval()


def nf4(dtype: torch.dtype, spared: Sequence[str] | None = None) -> BitsAndBytesConfig:
    """QLoRA's quantisation: NormalFloat4, constants quantised too, products in `dtype`.

    `spared`: names of layers that are left as they are; None: the head over words.
    """
    return BitsAndBytesConfig(
        llm_int8_skip_modules=None if spared is None else list(spared),
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_trainable(model: Any) -> None:
    """Keep bitsandbytes' layers in the layout that gradients pass through.

    On a CPU with AVX512-BF16 the first forward pass in eval mode repacks the weights for inference,
    in place, and no gradient leaves a repacked layer, not even in train mode (0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _shared(base: Any) -> dict[int, Any]:
    """deepcopy's memo of what is not copied: the tensors, and what bitsandbytes keeps of them."""
    tensors = [*base.parameters(), *base.buffers()]
    states = [t.quant_state for t in tensors if getattr(t, "quant_state", None) is not None]
    return {id(x): x for x in [*tensors, *states]}
