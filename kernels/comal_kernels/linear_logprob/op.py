"""The custom ops behind `linear_logprob`: what torch.compile and autograd see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comal_kernels import checks
from comal_kernels.chunks import to_host
from comal_kernels.engines.choose import resolve
from comal_kernels.head import Head, compute_dtype
from comal_kernels.linear_logprob.passes import Rows, kept_rows, token_grads, token_logps
from comal_kernels.segment import segment_sum

Maybe = Tensor | None
_OPTIONS = (
    "int ignore_index, float? softcap, float logit_scale, float temperature, str backend, "
    "int? workspace, float? grad_filter"
)
_INPUTS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? cu_seqlens"


def _rows(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    cu_seqlens: Maybe,
    ignore_index: int,
    backend: str,
    workspace: int | None,
    grad_filter: float | None,
    *,
    check: bool,
) -> Rows:
    """The plan; `check` looks at the indices' values first."""
    backend = resolve(backend, hidden)
    length, vocab = hidden.shape[0], head.weight.shape[0]
    if check:
        host = checks.target_values(target, vocab, ignore_index)
        cu = None if cu_seqlens is None else checks.bound_values(cu_seqlens, length)
    else:
        host, cu = to_host(target), None if cu_seqlens is None else to_host(cu_seqlens)
    return kept_rows(
        host,
        cu,
        ignore_index=ignore_index,
        head=head,
        workspace=workspace,
        backend=backend,
        grad_filter=grad_filter,
    )


@torch.library.custom_op(
    "comal_kernels::linear_logprob",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)",
)
def logprob_op(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    bias: Maybe,  # (V,)
    target: Tensor,  # (T,)
    cu_seqlens: Maybe,  # (S + 1,)
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    backend: str,
    workspace: int | None,
    grad_filter: float | None,
) -> tuple[Tensor, Tensor]:
    """Log-probs (T,) or (S,), and log-sum-exps (T,) for the way back: one pass."""
    head = Head(weight, bias, softcap, logit_scale, temperature)
    where = (target, cu_seqlens, ignore_index, backend, workspace, grad_filter)
    rows = _rows(hidden, head, *where, check=True)
    with torch.autocast(hidden.device.type, enabled=False):
        logp, lse = token_logps(head, hidden, rows)
        dense = logp.new_zeros(hidden.shape[0]).index_copy_(0, rows.row, lse)
        if rows.lengths is not None:
            return segment_sum(logp.double(), rows.lengths).to(logp.dtype), dense
        return logp.new_zeros(hidden.shape[0]).index_copy_(0, rows.row, logp), dense


@torch.library.custom_op(
    "comal_kernels::linear_logprob_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor lse, {_OPTIONS}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor)",
)
def logprob_backward_op(
    grad: Tensor,  # (T,) or (S,)
    hidden: Tensor,
    weight: Tensor,
    bias: Maybe,
    target: Tensor,
    cu_seqlens: Maybe,
    lse: Tensor,  # (T,)
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    backend: str,
    workspace: int | None,
    grad_filter: float | None,
    needs: list[bool],  # gradients of hidden, weight, bias
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; empty where not needed."""
    head = Head(weight, bias, softcap, logit_scale, temperature)
    where = (target, cu_seqlens, ignore_index, backend, workspace, grad_filter)
    rows = _rows(hidden, head, *where, check=False)
    with torch.autocast(hidden.device.type, enabled=False):
        if rows.lengths is None:
            coef = grad.index_select(0, rows.row)
        else:
            coef = grad.repeat_interleave(rows.lengths, output_size=rows.row.shape[0])
        kept = lse.index_select(0, rows.row)
        grads = token_grads(head, hidden, rows, kept, coef, needs, grad_filter)
    return tuple(hidden.new_empty(0) if g is None else g for g in grads)  # type: ignore[return-value]


@logprob_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, cu_seqlens: Maybe, *_: Any
) -> Any:
    dtype = compute_dtype(hidden.dtype)
    length = hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return hidden.new_empty(length, dtype=dtype), hidden.new_empty(hidden.shape[0], dtype=dtype)


@logprob_backward_op.register_fake
def _(grad: Tensor, hidden: Tensor, weight: Tensor, bias: Maybe, *rest: Any) -> Any:
    needs = rest[-1]
    return tuple(
        torch.empty_like(x) if need and x is not None else hidden.new_empty(0)
        for x, need in zip((hidden, weight, bias), needs, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, bias, target, cu_seqlens, *options = inputs
    ctx.save_for_backward(hidden, weight, bias, target, cu_seqlens, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.options = options


def _backward(ctx: Any, grad: Maybe, _: Maybe) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * (5 + len(ctx.options))
    needs = list(ctx.needs_input_grad[:3])
    grads = logprob_backward_op(grad, *ctx.saved_tensors, *ctx.options, needs)
    wanted = (g if need else None for g, need in zip(grads, needs, strict=True))
    return *wanted, None, None, *(None for _ in ctx.options)


torch.library.register_autograd(logprob_op, _backward, setup_context=_setup)
