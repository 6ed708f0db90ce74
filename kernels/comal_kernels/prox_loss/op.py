"""The custom op behind `prox_loss`: loss and gradients in one call; autograd only scales them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from comal_kernels import checks
from comal_kernels.chunks import make_plan, to_device, to_host
from comal_kernels.engines.choose import resolve, rows_within
from comal_kernels.head import Head, compute_dtype
from comal_kernels.prox import PROX
from comal_kernels.prox_loss.passes import ProxPass, Work
from comal_kernels.prox_loss.step import Inputs, ProxStep

Maybe = Tensor | None


@torch.library.custom_op(
    "comal_kernels::prox_loss",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor cu_seqlens, "
    "Tensor chosen, Tensor? rejected, Tensor? ref_logp, Tensor? last_logp, Tensor? ref_hidden, "
    "Tensor? ref_weight, Tensor? ref_bias, Tensor? preference, Tensor? reward, "
    "Tensor? pair_weight, Tensor? group, Tensor?[] hyper_tensors, float[] hyper_numbers, "
    "str loss, int ignore_index, float? softcap, float logit_scale, float temperature, "
    "str backend, int? workspace, float? grad_filter, "
    "bool average_log_prob, bool[] needs) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def prox_loss_op(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    bias: Maybe,  # (V,)
    target: Tensor,  # (T,)
    cu_seqlens: Tensor,  # (S + 1,)
    chosen: Tensor,  # (P,)
    rejected: Maybe,  # (P,)
    ref_logp: Maybe,  # (S,)
    last_logp: Maybe,  # (S,)
    ref_hidden: Maybe,  # (T, H')
    ref_weight: Maybe,  # (V, H')
    ref_bias: Maybe,  # (V,)
    preference: Maybe,  # (P,)
    reward: Maybe,  # (S,)
    pair_weight: Maybe,  # (P,)
    group: Maybe,  # (S,)
    hyper_tensors: list[Maybe],  # in the order of the loss's `hyper`
    hyper_numbers: list[float],  # the same; NaN for a tensor or None
    loss: str,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    backend: str,
    workspace: int | None,
    grad_filter: float | None,
    average_log_prob: bool,
    needs: list[bool],  # gradients of hidden, weight, bias
) -> tuple[Tensor, ...]:
    """loss, logp, ref_logp, margin, accuracy, per_pair_loss, dhidden, dweight, dbias.

    Empty where there is none.
    """
    prox, device, dtype = PROX[loss], hidden.device, compute_dtype(hidden.dtype)
    backend = resolve(backend, hidden)
    host = checks.target_values(target, weight.shape[0], ignore_index)
    cu = checks.bound_values(cu_seqlens, hidden.shape[0])
    first, second = checks.pair_values(chosen, rejected, len(cu) - 1)
    checks.preference_values(preference)
    head = Head(weight, bias, softcap, logit_scale, temperature)
    capacity = rows_within(head, workspace, backend, grad_filter)
    plan = make_plan(
        host,
        cu,
        first,
        second,
        ignore_index=ignore_index,
        capacity=capacity,
        grad=any(needs),
        group=None if group is None else to_host(group),
    )
    with torch.autocast(device.type, enabled=False):
        live = None
        if ref_hidden is not None and ref_weight is not None:
            live = Head(ref_weight, ref_bias, softcap, logit_scale, temperature), ref_hidden
        inputs = Inputs(
            chosen=to_device(first, device),
            rejected=None if second is None else to_device(second, device),
            ref=None if ref_logp is None else ref_logp.to(device),
            last=last_logp,
            reward=reward,
            preference=preference,
            weight=pair_weight,
            hyper={
                name: (None if math.isnan(number) else number) if tensor is None else tensor
                for name, tensor, number in zip(
                    prox.hyper, hyper_tensors, hyper_numbers, strict=True
                )
            },
            average_log_prob=average_log_prob,
            live_ref=live is not None,
        )
        step = ProxStep(prox, inputs, plan, device)
        work = Work(head, plan, step, capacity, backend, needs, grad_filter, live)
        run = ProxPass(work, hidden)
        run.run()
        results = (
            step.total().to(dtype),
            step.logp.to(dtype),
            None if step.ref is None else step.ref.to(dtype, copy=True),
            *(x.to(dtype) for x in (step.reported_margin(), step.accuracy(), step.pair_loss())),
            run.dhidden,
            *run.engine.weight_grads(),
        )
    return tuple(hidden.new_empty(0) if x is None else x for x in results)


@prox_loss_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Maybe,
    target: Tensor,
    cu_seqlens: Tensor,
    chosen: Tensor,
    rejected: Maybe,
    ref_logp: Maybe,
    last_logp: Maybe,
    ref_hidden: Maybe,
    *rest: Any,
) -> tuple[Tensor, ...]:
    dtype, needs = compute_dtype(hidden.dtype), rest[-1]

    def new(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    sequences, pairs = cu_seqlens.shape[0] - 1, chosen.shape[0]
    none = ref_logp is None and ref_hidden is None
    ref = hidden.new_empty(0) if none else new(sequences)
    grads = (
        torch.empty_like(x) if need and x is not None else hidden.new_empty(0)
        for x, need in zip((hidden, weight, bias), needs, strict=True)
    )
    return new(), new(sequences), ref, new(pairs), new(), new(pairs), *grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as the head, for outputs with no grad
    ctx.save_for_backward(*output[-3:])
    ctx.needs, ctx.inputs = inputs[-1], len(inputs)


def _backward(ctx: Any, grad: Maybe, *_: Maybe) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * ctx.inputs
    # on the host the usual factor 1 is known without waiting, and spares a sweep over dW
    one = type(grad) is Tensor and grad.device.type == "cpu" and grad.item() == 1.0
    grads = (
        None if not need else x if one else x * grad.to(x.dtype)
        for x, need in zip(ctx.saved_tensors, ctx.needs, strict=True)
    )
    return *grads, *(None for _ in range(ctx.inputs - 3))


torch.library.register_autograd(prox_loss_op, _backward, setup_context=_setup)
