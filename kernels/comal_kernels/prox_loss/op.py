"""The custom op behind `prox_loss`: loss and gradients in one call; autograd only scales them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from comal_kernels import checks, flat
from comal_kernels.chunks import make_plan
from comal_kernels.flat import Maybe
from comal_kernels.head import compute_dtype
from comal_kernels.prox import PROX
from comal_kernels.prox_loss.passes import ProxPass, Work
from comal_kernels.prox_loss.step import Inputs, ProxStep
from comal_kernels.scale import scale_gradient
from comal_kernels.transfer import to_host


@torch.library.custom_op(
    "comal_kernels::prox_loss",
    mutates_args=(),
    schema="(Tensor hidden, bool[] needs, float loss_scale, Tensor target, Tensor cu_seqlens, "
    "int ignore_index, Tensor chosen, Tensor? rejected, Tensor? ref_logp, Tensor? last_logp, "
    "Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias, Tensor? preference, Tensor? reward, "
    "Tensor? reward_margin, Tensor? pair_weight, Tensor? group, str loss, Tensor?[] hyper_tensors, "
    f"float[] hyper_numbers, bool average_log_prob, {flat.SCHEMA}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def prox_loss_op(
    hidden: Tensor,  # (T, H)
    needs: list[bool],  # gradients of hidden, weight, bias
    loss_scale: float,  # by which they are larger until the backward pass
    target: Tensor,  # (T,)
    cu_seqlens: Tensor,  # (S + 1,)
    ignore_index: int,
    chosen: Tensor,  # (P,)
    rejected: Maybe,  # (P,)
    ref_logp: Maybe,  # (S,)
    last_logp: Maybe,  # (S,)
    ref_hidden: Maybe,  # (T, H')
    ref_weight: Maybe,  # (V, H')
    ref_bias: Maybe,  # (V,)
    preference: Maybe,  # (P,)
    reward: Maybe,  # (S,)
    reward_margin: Maybe,  # (P,)
    pair_weight: Maybe,  # (P,)
    group: Maybe,  # (S,)
    loss: str,
    hyper_tensors: list[Maybe],  # as from `split`
    hyper_numbers: list[float],
    average_log_prob: bool,
    *records: Any,  # the head, the execution
) -> tuple[Tensor, ...]:
    """loss, logp, ref_logp, margin, accuracy, per_pair_loss, dhidden, dweight, dbias.

    Empty where there is none.
    """
    head, execution = flat.restore(records)
    prox, device, dtype = PROX[loss], hidden.device, compute_dtype(hidden.dtype)
    execution = execution.resolved(hidden)
    host = checks.target_values(target, head.weight.shape[0], ignore_index)
    cu = checks.bound_values(cu_seqlens, hidden.shape[0])
    first, second = checks.pair_values(chosen, rejected, len(cu) - 1)
    checks.preference_values(preference)
    plan = make_plan(
        host,
        cu,
        first,
        second,
        ignore_index=ignore_index,
        capacity=execution.rows(head, int((host != ignore_index).sum()), needs[1]),
        grad=any(needs),
        group=None if group is None else to_host(group),
    )
    with torch.autocast(device.type, enabled=False):
        live = None
        if ref_hidden is not None and ref_weight is not None:
            live = head.over(ref_weight, ref_bias), ref_hidden
        inputs = Inputs(
            chosen=first,
            rejected=second,
            ref=None if ref_logp is None else ref_logp.to(device),
            last=last_logp,
            reward=reward,
            reward_margin=reward_margin,
            preference=preference,
            weight=pair_weight,
            hyper=dict(zip(prox.hyper, _joined(hyper_tensors, hyper_numbers), strict=True)),
            average_log_prob=average_log_prob,
            live_ref=live is not None,
        )
        make_step = functools.partial(ProxStep, prox, inputs, plan, device)
        run = ProxPass(Work(head, execution, plan, make_step, needs, live, loss_scale), hidden)
        run.run()
        step = run.step
        results = (
            step.total().to(dtype),
            step.logp.to(dtype),
            None if step.ref is None else step.ref.to(dtype, copy=True),
            *(x.to(dtype) for x in (step.reported_margin(), step.accuracy(), step.pair_loss())),
            run.dhidden,
            *run.engine.weight_grads(),
        )
    return flat.filled(hidden, results)


def split(hyper: Mapping[str, float | Maybe]) -> tuple[list[Maybe], list[float]]:
    """Hyperparameters as the op takes them: tensors, None elsewhere; numbers, NaN elsewhere."""
    numbers = [x if isinstance(x, float) else math.nan for x in hyper.values()]
    return [x if isinstance(x, Tensor) else None for x in hyper.values()], numbers


def _joined(tensors: list[Maybe], numbers: list[float]) -> list[float | Maybe]:
    """The values of the hyperparameters, in their order, that `split` took apart."""
    return [
        (None if math.isnan(number) else number) if tensor is None else tensor
        for tensor, number in zip(tensors, numbers, strict=True)
    ]


@prox_loss_op.register_fake
def _(
    hidden: Tensor,
    needs: list[bool],
    loss_scale: float,
    target: Tensor,
    cu_seqlens: Tensor,
    ignore_index: int,
    chosen: Tensor,
    rejected: Maybe,
    ref_logp: Maybe,
    last_logp: Maybe,
    ref_hidden: Maybe,
    *rest: Any,
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden.dtype)

    def new(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    sequences, pairs = cu_seqlens.shape[0] - 1, chosen.shape[0]
    none = ref_logp is None and ref_hidden is None
    ref = hidden.new_empty(0) if none else new(sequences)
    grads = flat.fake_grads(needs, *flat.trained((hidden, *rest)))
    return new(), new(sequences), ref, new(pairs), new(), new(pairs), *grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as the head, for outputs with no grad
    ctx.save_for_backward(*output[-3:])
    ctx.needs, ctx.loss_scale = inputs[1:3]
    ctx.none = flat.no_grads(inputs)


def _backward(ctx: Any, grad: Maybe, *_: Maybe) -> tuple[Any, ...]:
    if grad is None:
        return tuple(ctx.none)
    if ctx.loss_scale != 1.0:
        grad = grad / ctx.loss_scale
    grads = (
        scale_gradient(x, grad) if need else None
        for x, need in zip(ctx.saved_tensors, ctx.needs, strict=True)
    )
    return flat.with_grads(ctx.none, grads)


torch.library.register_autograd(prox_loss_op, _backward, setup_context=_setup)
