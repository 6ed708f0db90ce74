"""A layer's residual addition and the norm behind it as one kernel, on CUDA beside Liger's.

A decoder layer adds its attention's output to the residual, then normalises the sum for its MLP. As
two operators that reads the sum again, and backwards writes a gradient only to add another to it.
Exact up to the rounding of that gradient, which is rounded once instead of twice.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 16  # of a program backwards: each leaves H numbers of the weight's gradient to be added up
WIDEST = 8192  # numbers of a row: wider ones spill registers

# What `ast.unparse` makes of the forward of Llama's layers, and of Mistral's, Qwen's and others'.
KNOWN_FORWARD = re.compile(
    r"""residual = hidden_states
hidden_states = self\.input_layernorm\(hidden_states\)
hidden_states, \w+ = self\.self_attn\(hidden_states=hidden_states, (?:(\w+)=\1, )*\*\*kwargs\)
hidden_states = residual \+ hidden_states
residual = hidden_states
hidden_states = self\.post_attention_layernorm\(hidden_states\)
hidden_states = self\.mlp\(hidden_states\)
hidden_states = residual \+ hidden_states
return hidden_states"""
)


def fuse_residual_norms(model: Any) -> int:
    """Let the layers of a model that has Liger's norms add and normalise in one kernel.

    A layer stays as it is where its forward is not the known one, or its norm not Llama's.

    Returns:
        How many layers do so now.
    """
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    num_fused = 0
    for layer in model.modules():
        norm = getattr(layer, "post_attention_layernorm", None)
        kind: Any = type(layer)
        if norm is None or not has_known_forward(kind):
            continue
        is_ligers = getattr(norm.forward, "__func__", None) is LigerRMSNorm.forward
        is_llamas = is_ligers and norm.casting_mode == "llama" and norm.offset == 0.0
        if is_llamas and norm.weight.shape[0] <= WIDEST:
            norm.forward = MethodType(_add_and_normalize, norm)
            layer.__class__ = _fused_class(kind)
            num_fused += 1
    return num_fused


@cache
def _fused_class(layer: Any) -> Any:
    """Return the class of layers with `_forward` in its place.

    A subclass, for transformers recomputes what a class of layers has as its forward.
    """
    return type(layer.__name__, (layer,), {"forward": _forward, "__module__": layer.__module__})


@cache
def has_known_forward(layer: Any) -> bool:
    """Return whether a class of layers computes what `_forward` computes, by its source."""
    try:
        source = textwrap.dedent(inspect.getsource(layer.forward))
        (function,) = ast.parse(source).body
    except (AttributeError, OSError, TypeError, SyntaxError, ValueError):
        return False
    body = [ast.unparse(statement) for statement in getattr(function, "body", [])]
    return KNOWN_FORWARD.fullmatch("\n".join(body)) is not None


def _forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """Compute a layer whose norm returns the residual too, with the attention's output added."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    normalized, residual = self.post_attention_layernorm(attended, hidden_states)
    out: Tensor = residual + self.mlp(normalized)
    return out


def _add_and_normalize(self: Any, hidden_states: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Call `add_norm` as the forward of a norm, so that the module's hooks still run."""
    return add_norm(hidden_states, residual, self.weight, self.variance_epsilon)


def add_norm(x: Tensor, r: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return RMSNorm(x + r) · weight, and x + r.

    Args:
        x: (…, H), on CUDA or in Triton's interpreter.
        r: (…, H), of the same dtype.
        weight: (H,).
        eps: Added to the mean of the squares.
    """
    found: tuple[Tensor, Tensor] = _AddNorm.apply(x, r, weight, eps)
    return found


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        from comal_fast.model.residual_norm_kernel import add_norm_kernel

        x, r = x.contiguous(), r.contiguous()
        width = x.shape[-1]
        num_rows = x.numel() // width
        total = torch.empty_like(x)
        # a weight of a wider dtype widens what it multiplies, as in transformers
        normalized = torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))
        rho = torch.empty(num_rows, dtype=torch.float32, device=x.device)
        block = _power_of_two(width)
        with torch.cuda.device_of(x):
            add_norm_kernel[(num_rows,)](
                x,
                r,
                weight,
                total,
                normalized,
                rho,
                width,
                eps,
                BLOCK=block,
                num_warps=_warps(block),
            )
        ctx.save_for_backward(total, weight, rho)
        return normalized, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_normalized: Tensor, d_total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None]:
        from comal_fast.model.residual_norm_kernel import add_norm_backward_kernel

        total, weight, rho = ctx.saved_tensors
        d_normalized, d_total = d_normalized.contiguous(), d_total.contiguous()
        num_rows, width, block = len(rho), total.shape[-1], _power_of_two(total.shape[-1])
        programs = -(-num_rows // ROWS)
        has_dw = ctx.needs_input_grad[2]
        dx = torch.empty_like(total)
        parts = rho.new_empty(programs if has_dw else 0, width)
        with torch.cuda.device_of(total):
            add_norm_backward_kernel[(programs,)](
                d_normalized,
                d_total,
                total,
                weight,
                rho,
                dx,
                parts,
                num_rows,
                width,
                ROWS=ROWS,
                HAS_DW=has_dw,
                BLOCK=block,
                num_warps=_warps(block),
            )
        return dx, dx, parts.sum(0).to(weight.dtype) if has_dw else None, None


def _power_of_two(width: int) -> int:
    """Return the least power of two that is no less than `width`."""
    return 1 << (width - 1).bit_length()


def _warps(block: int) -> int:
    """Return the warps of a program: a thread holds at most 16 numbers of a row."""
    return max(block // 512, 4)
