"""The custom ops behind `linear_logprob`: what torch.compile and autograd see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comal_kernels import checks, flat
from comal_kernels.flat import Maybe
from comal_kernels.head import compute_dtype
from comal_kernels.linear_logprob.passes import kept_rows, token_grads, token_logps
from comal_kernels.segment import segment_sum
from comal_kernels.transfer import to_host

_ARGUMENTS = f"Tensor hidden, Tensor target, Tensor? cu_seqlens, int ignore_index, {flat.SCHEMA}"


@torch.library.custom_op(
    "comal_kernels::linear_logprob",
    mutates_args=(),
    schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)",
)
def logprob_op(
    hidden: Tensor,  # (T, H)
    target: Tensor,  # (T,)
    cu_seqlens: Maybe,  # (S + 1,)
    ignore_index: int,
    *records: Any,  # the head, the execution
) -> tuple[Tensor, Tensor]:
    """Log-probs (T,) or (S,), and log-sum-exps (T,) for the way back: one pass."""
    head, execution = flat.restore(records)
    execution, length = execution.resolved(hidden), hidden.shape[0]
    host = checks.target_values(target, head.weight.shape[0], ignore_index)
    cu = None if cu_seqlens is None else checks.bound_values(cu_seqlens, length)
    rows = kept_rows(host, cu, ignore_index, hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        logp, lse = token_logps(hidden, head, rows, execution)
        dense = logp.new_zeros(length).index_copy_(0, rows.row, lse)
        if rows.lengths is not None:
            return segment_sum(logp.double(), rows.lengths).to(logp.dtype), dense
        return logp.new_zeros(length).index_copy_(0, rows.row, logp), dense


@torch.library.custom_op(
    "comal_kernels::linear_logprob_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor lse, bool[] needs, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def logprob_backward_op(
    grad: Tensor,  # (T,) or (S,)
    lse: Tensor,  # (T,)
    needs: list[bool],  # gradients of hidden, weight, bias
    hidden: Tensor,
    target: Tensor,
    cu_seqlens: Maybe,
    ignore_index: int,
    *records: Any,
) -> tuple[Tensor, ...]:
    """Gradients of hidden, weight and bias; empty where not needed."""
    head, execution = flat.restore(records)
    cu = None if cu_seqlens is None else to_host(cu_seqlens)  # checked on the way forward
    rows = kept_rows(to_host(target), cu, ignore_index, hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        if rows.lengths is None:
            coef = grad.index_select(0, rows.row)
        else:
            coef = grad.repeat_interleave(rows.lengths, output_size=rows.row.shape[0])
        kept = lse.index_select(0, rows.row)
        grads = token_grads(hidden, head, rows, execution.resolved(hidden), kept, coef, needs)
    return flat.filled(hidden, grads)


@logprob_op.register_fake
def _(hidden: Tensor, target: Tensor, cu_seqlens: Maybe, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(hidden.dtype)
    length = hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return hidden.new_empty(length, dtype=dtype), hidden.new_empty(hidden.shape[0], dtype=dtype)


@logprob_backward_op.register_fake
def _(grad: Tensor, lse: Tensor, needs: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    return flat.fake_grads(needs, *flat.trained(arguments))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]


def _backward(ctx: Any, grad: Maybe, _: Maybe) -> tuple[Any, ...]:
    none = flat.no_grads(ctx.options)
    if grad is None:
        return tuple(none)
    lse, *tensors = ctx.saved_tensors
    arguments = [y if x is None else x for x, y in zip(tensors, ctx.options, strict=True)]
    needs = flat.trained(ctx.needs_input_grad)
    grads = logprob_backward_op(grad, lse, needs, *arguments)
    wanted = (g if need else None for g, need in zip(grads, needs, strict=True))
    return flat.with_grads(none, wanted)


torch.library.register_autograd(logprob_op, _backward, setup_context=_setup)
