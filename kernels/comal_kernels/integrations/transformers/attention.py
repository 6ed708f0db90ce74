"""The entry of transformers' attention interface, and which engine stands behind it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from comal_kernels.attention.flex import compiled, flex
from comal_kernels.attention.layout import Engine, Layout, Options
from comal_kernels.attention.sdpa import sdpa
from comal_kernels.attention.varlen import (
    flash,
    flash_3,
    flash_4,
    is_installed,
    torch_varlen,
    varlen,
)
from comal_kernels.errors import ModelError

# Best on CUDA first. Their names in transformers, which holds a name with `flash`, `flex_attention`
# or `sdpa` in it for its own.
ENGINES = {
    "flash_attention_3": "comal_fa3",
    "flash_attention_4": "comal_fa4",
    "flash_attention_2": "comal_fa2",
    "torch_varlen": "comal_varlen",
    "flex_attention": "comal_flex",
    "sdpa": "comal_segments",
}


class Limits(NamedTuple):
    """The bounds within which a release of FlashAttention runs, forward and backward."""

    package: str  # as pip installs it
    capabilities: tuple[int, ...]  # major numbers of the devices' compute capability
    widest: int  # numbers of an attention head
    multiple: int  # of which a head's numbers are one
    widest_deterministic: int


# From the packages' own checks and, of 4, from the head sizes whose backward its tests run.
FLASH = {
    "flash_attention_3": Limits("flash-attn-3", (9,), 256, 8, 192),
    "flash_attention_4": Limits("flash-attn-4", (9, 10), 128, 8, 128),
    "flash_attention_2": Limits("flash-attn", (8, 9, 10, 11, 12), 256, 1, 256),
}
# what a layer may ask for beside `Options`, none of which packing keeps exact
REFUSED = {"s_aux": "sinks", "position_bias": "position biases"}
LEAST_FLEX_WIDTH = 16  # its compiled kernels multiply by matrix instructions
KINDS = {"full_attention", "sliding_attention", "attention"}  # of layers, in transformers' configs


def asked(
    module: torch.nn.Module,
    query: Tensor,  # (…, D)
    scaling: float | None,
    dropout: float,
    others: dict[str, Any],
) -> Options:
    """What a layer asks of its attention. Raises ModelError for what no engine here does."""
    for option, what in REFUSED.items():
        if others.get(option) is not None:
            raise _inexact(f"attention {what}", module)
    if not getattr(module, "is_causal", True):
        raise _inexact("attention to what follows", module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Options(scale, others.get("softcap"), others.get("sliding_window"), dropout)


def register(implementation: str, engine: Engine) -> None:
    """Make an engine an attention implementation of transformers."""

    def packed_attention(
        module: torch.nn.Module,
        query: Tensor,  # (1, heads, T, D)
        key: Tensor,  # (1, kv_heads, T, D)
        value: Tensor,  # (1, kv_heads, T, D)
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        *,
        layout: Layout,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:  # (1, T, heads, D)
        options = asked(module, query, scaling, dropout, kwargs)
        return engine(query, key, value, layout, options), None

    # without an entry in its mask interface, transformers makes no mask, nor waits for the GPU to
    # see whether it must
    AttentionInterface.register(implementation, packed_attention)


CALLS: dict[str, Engine] = {
    "flash_attention_3": varlen(flash_3),
    "flash_attention_4": varlen(flash_4),
    "flash_attention_2": varlen(flash),
    "torch_varlen": varlen(torch_varlen),
    "flex_attention": flex(compiled),
    "sdpa": sdpa,
}
for _name, _engine in CALLS.items():
    register(ENGINES[_name], _engine)


def choose_engine(requested: str, model: Any) -> str:
    """Of ENGINES, the one that `attn_implementation` means for a model where it is.

    Raises ModelError for one that can't run it. `auto`: the first that can; on a CPU, sdpa.
    """
    if requested != "auto":
        why = _why_not(requested, model)
        if why:
            raise ModelError(f"attn_implementation: {requested} {why}")
        return requested
    return next(engine for engine in ENGINES if not _why_not(engine, model))


def refuse(model: Any) -> None:
    """Raise ModelError for a model whose layers mix tokens in ways that no engine keeps apart."""
    config = model.config
    kinds = {*(getattr(config, "layer_types", None) or ())}
    kinds |= {*(getattr(config, "layers_block_type", None) or ())}
    for kind in sorted(kinds - KINDS):
        raise _inexact(f"layers of the kind {kind}", model)
    if not model.is_backend_compatible():
        raise _inexact("an attention of the model's own", model)
    if not _passes_on(model):
        raise _inexact("an attention that is told nothing of the layout", model)


_passing: dict[type, bool] = {}  # of models, by class


def _passes_on(model: Any) -> bool:
    """Whether the model hands what it is called with on to its attention; some families don't.

    Seen on a copy without weights, once for each class.
    """
    kind, reached = type(model), []
    if kind not in _passing:

        def look(
            module: torch.nn.Module, query: Tensor, *_: Any, **given: Any
        ) -> tuple[Tensor, None]:
            reached.append("layout" in given)
            return torch.empty_like(query).transpose(1, 2), None

        AttentionInterface.register("comal_look", look)
        try:
            with torch.device("meta"), torch.no_grad():
                copied = kind(copy.deepcopy(model.config)).eval()
                copied.set_attn_implementation("comal_look")
                ids = torch.zeros(1, 2, dtype=torch.int64)
                copied.base_model(input_ids=ids, position_ids=ids, use_cache=False, layout=None)
        except Exception:  # nothing was learned: the first real pass tells
            reached.clear()
        _passing[kind] = all(reached)
    return _passing[kind]


def head_width(config: Any) -> int:
    """Numbers of an attention head's query."""
    config = config.get_text_config()
    width: int = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return width


def _why_not(engine: str, model: Any) -> str | None:
    if engine == "sdpa":
        return None
    if model.device.type != "cuda":
        return "needs CUDA"
    if engine == "flex_attention":
        width = head_width(model.config)
        wanted = f"needs heads of {LEAST_FLEX_WIDTH} numbers, and the model's have {width}"
        return wanted if width < LEAST_FLEX_WIDTH else None
    if model.dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16 or float16, the model in {str(model.dtype).split('.')[1]}"
    if engine in FLASH:
        return _why_not_flash(engine, model)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        return f"has no attention soft-capping, and {type(model).__name__} needs it"
    return None if is_installed(engine) else "needs a newer torch, whose varlen_attn has windows"


def _why_not_flash(engine: str, model: Any) -> str | None:
    """Return what keeps a release of FlashAttention from a model on CUDA, or None."""
    limits, width = FLASH[engine], head_width(model.config)
    if not is_installed(engine):
        return f"needs the package {limits.package}"
    # ROCm's capabilities are other numbers: only FlashAttention 2 is built for it.
    major, minor = torch.cuda.get_device_capability(model.device)
    if major not in limits.capabilities or (engine != "flash_attention_2" and torch.version.hip):
        return f"does not run on this GPU (compute capability {major}.{minor})"
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    widest = limits.widest_deterministic if is_deterministic else limits.widest
    if width > widest or width % limits.multiple:
        kind = "deterministic gradients" if is_deterministic else "gradients"
        return f"has no {kind} for heads of {width} numbers"
    return None


def _inexact(what: str, module: torch.nn.Module) -> ModelError:
    return ModelError(f"packed attention can't do {what}; {type(module).__name__} needs it")
