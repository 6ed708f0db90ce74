"""What a decoder keeps and needs a token, counted on transformers' own layers.

One and two layers of the real configuration run forward and backward on the `meta` device, which
holds no memory, while the bytes of every tensor alive are counted. So the figure is what autograd
saves for this family and dtype, with what the backward pass of a layer needs besides.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from comal_fast.model.activations import recompute_layers
from comal_fast.model.liger import stock_layers
from comal_fast.plan.shapes import Shape

TOKENS = 1 << 20  # so many that the weights' gradients don't count beside them
PACKED, COPYING = "comal_counted", "comal_counted_copying"


@dataclass(frozen=True)
class PerToken:
    """Bytes a token."""

    layer: float  # a layer keeps for its backward pass
    input: float  # a recomputed layer keeps
    ends: float  # embedding and final norm keep
    backward: float  # at most besides what is kept, while the last layers go backward
    recompute: float  # the same where they are recomputed: one layer's own, and `backward`
    forward: float  # at most, without gradients


class _Alive(TorchDispatchMode):
    """Bytes of the storages that operators made and that still live, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return result

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out parameters and inputs: they are counted elsewhere."""
        self._seen |= {t.untyped_storage()._cdata for t in tensors}

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Adapted(torch.nn.Module):
    """A frozen linear layer with an adapter as peft computes it: in float32 (arXiv 2106.09685)."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        wide: Any = {"bias": False, "dtype": torch.float32, "device": "meta"}
        self.base = base
        self.a = torch.nn.Linear(base.in_features, rank, **wide)
        self.b = torch.nn.Linear(rank, base.out_features, **wide)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return (result + self.b(self.a(x.float())) * 2.0).to(result.dtype)


class _Flash(torch.autograd.Function):
    """What packed flash attention reads, saves and returns; on `meta` nothing is computed."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, width = query.shape
        out = query.new_empty(batch, tokens, heads, width)
        ctx.save_for_backward(
            query, key, value, out, query.new_empty(batch, heads, tokens, dtype=torch.float32)
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _flash(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    return _Flash.apply(query, key, value), None


def _copying(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention as SDPA by the sequence has it: results are kept, and the row made of them."""
    out, _ = _flash(*args, **kwargs)
    return torch.cat([out.transpose(1, 2)], dim=2).transpose(1, 2), None


for _name, _attention in ((PACKED, _flash), (COPYING, _copying)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, lambda *args, **kwargs: None)


@lru_cache
def per_token(
    shape: Shape, dtype: torch.dtype, rank: int | None = None, copying: bool = False
) -> PerToken:
    """What a token costs in layers of this shape and dtype.

    `rank`: of adapters on frozen weights.
    `copying`: attention is SDPA, a call a sequence, instead of one packed kernel.
    """
    kind = _Kind(shape, dtype, rank, COPYING if copying else PACKED)
    with stock_layers():  # Liger's kernels want a GPU's memory
        one, two = (_passes(kind, n, False) for n in (1, 2))
        recomputed, both = (_passes(kind, n, True) for n in (1, 2))
        forward = _forward(kind)
    layer = two.kept - one.kept
    return PerToken(
        layer=layer,
        input=both.kept - recomputed.kept,
        ends=one.kept - layer,
        backward=two.peak - two.kept,
        recompute=both.peak - both.kept,
        forward=forward,
    )


@dataclass(frozen=True)
class _Kind:
    shape: Shape
    dtype: torch.dtype
    rank: int | None
    attention: str

    def model(self, layers: int) -> Any:
        """The model with so many layers, without its head, on `meta`."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self.shape.config(layers), dtype=self.dtype, attn_implementation=self.attention
            ).base_model
        if self.rank is not None:
            model.requires_grad_(False)
            for module in [*model.modules()]:
                for name, child in [*module.named_children()]:
                    if isinstance(child, torch.nn.Linear):
                        setattr(module, name, _Adapted(child, self.rank))
        return model


@dataclass(frozen=True)
class _Passes:
    kept: float  # after the forward pass
    peak: float  # of both


def _run(model: Any) -> Tensor:
    ids = torch.empty(1, TOKENS, dtype=torch.int64, device="meta")
    mask = torch.empty(1, 1, 1, 1, device="meta")  # given, so that none is made from the positions
    inputs = {"input_ids": ids, "position_ids": ids, "attention_mask": mask}
    return model(**inputs, use_cache=False).last_hidden_state


def _passes(kind: _Kind, layers: int, recompute: bool) -> _Passes:
    model, alive = kind.model(layers).train(), _Alive()
    if recompute:
        recompute_layers(model, layers)
    alive.ignore(*model.parameters(), *model.buffers())
    with alive:
        out = _run(model)
        gradient = torch.empty_like(out)
        heads = 2 * out.numel() * out.element_size()  # its input and gradient are counted with it
        kept = alive.peak = alive.now
        out.backward(gradient)
    return _Passes((kept - heads) / TOKENS, (alive.peak - heads) / TOKENS)


def _forward(kind: _Kind) -> float:
    model, alive = kind.model(2).eval(), _Alive()
    alive.ignore(*model.parameters(), *model.buffers())
    with torch.no_grad(), alive:
        _run(model)
    return alive.peak / TOKENS
