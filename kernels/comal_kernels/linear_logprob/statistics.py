"""The custom ops behind `linear_logprob(outputs=…)`: chunked, logits computed anew backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comal_kernels import checks, flat
from comal_kernels.chunks import pieces
from comal_kernels.engines.statistics import Slopes, Statistics
from comal_kernels.flat import Maybe
from comal_kernels.head import compute_dtype
from comal_kernels.linear_logprob.passes import kept_rows
from comal_kernels.transfer import to_host

_ARGUMENTS = f"Tensor hidden, Tensor target, int k, int ignore_index, {flat.SCHEMA}"
_TENSORS = ", ".join(
    f"Tensor {name}" for name in ("logp", "lse", "entropy", "mean", "top1", "topk", "ids", "rest")
)
DIFFERENTIABLE = (0, 1, 2, 3, 5)  # of the op's results: logp, lse, entropy, mean_logit, topk


@torch.library.custom_op(
    "comal_kernels::linear_statistics",
    mutates_args=(),
    schema=f"({_ARGUMENTS}) -> ({', '.join(['Tensor'] * 8)})",
)
def statistics_op(
    hidden: Tensor,  # (T, H)
    target: Tensor,  # (T,)
    k: int,
    ignore_index: int,
    *records: Any,  # the head, the execution
) -> tuple[Tensor, ...]:
    """`Statistics` of every position, zeros where the target is ignored."""
    head, execution = flat.restore(records)
    host = checks.target_values(target, head.weight.shape[0], ignore_index)
    rows = kept_rows(host, None, ignore_index, hidden.device)
    n = rows.row.shape[0]
    result = _empty(hidden, k, torch.zeros)
    engine = execution.statistics(head, n)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in pieces(slice(0, n), engine.logp_rows):
            index = rows.row[part]
            x = hidden.index_select(0, index)
            found = engine.statistics(x, rows.target[part], k)
            for whole, some in zip(result, vars(found).values(), strict=True):
                whole.index_copy_(0, index, some)
    return result


@torch.library.custom_op(
    "comal_kernels::linear_statistics_backward",
    mutates_args=(),
    schema=(
        f"(Tensor?[] grads, {_TENSORS}, bool[] needs, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
    ),
)
def statistics_backward_op(
    grads: list[Maybe],  # of DIFFERENTIABLE
    logp: Tensor,
    lse: Tensor,
    entropy: Tensor,
    mean: Tensor,
    top1: Tensor,
    topk: Tensor,
    ids: Tensor,
    rest: Tensor,
    needs: list[bool],  # gradients of hidden, weight, bias
    hidden: Tensor,
    target: Tensor,
    k: int,
    ignore_index: int,
    *records: Any,
) -> tuple[Tensor, ...]:
    """Gradients of hidden, weight and bias; empty where not needed."""
    head, execution = flat.restore(records)
    rows = kept_rows(to_host(target), None, ignore_index, hidden.device)
    found = Statistics(logp, lse, entropy, mean, top1, topk, ids, rest)
    n, dhidden = rows.row.shape[0], torch.zeros_like(hidden) if needs[0] else None
    engine = execution.statistics(head, n, needs)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in pieces(slice(0, n), engine.capacity):
            index = rows.row[part]
            x = hidden.index_select(0, index)
            here = Statistics(*(t.index_select(0, index) for t in vars(found).values()))
            by = Slopes(*(None if g is None else g.index_select(0, index) for g in grads))
            dx = engine.differentiate(x, rows.target[part], here, by)
            if dhidden is not None and dx is not None:
                dhidden.index_copy_(0, index, dx.to(dhidden.dtype))
    return flat.filled(hidden, (dhidden, *engine.weight_grads()))


def _empty(hidden: Tensor, k: int, make: Any) -> tuple[Tensor, ...]:
    dtype, device, length = compute_dtype(hidden.dtype), hidden.device, hidden.shape[0]
    shapes = [(length,)] * 5 + [(length, k)] * 2 + [(length,)]
    dtypes = [dtype] * 4 + [torch.bool, dtype, torch.int64, dtype]
    return tuple(make(s, dtype=d, device=device) for s, d in zip(shapes, dtypes, strict=True))


@statistics_op.register_fake
def _(hidden: Tensor, target: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    return _empty(hidden, k, torch.empty)


@statistics_backward_op.register_fake
def _(grads: list[Maybe], *arguments: Any) -> tuple[Tensor, ...]:
    return flat.fake_grads(arguments[8], *flat.trained(arguments[9:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors = (x if isinstance(x, Tensor) else None for x in inputs)
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[4], output[6], output[7])
    ctx.set_materialize_grads(False)
    ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]


def _backward(ctx: Any, *grads: Maybe) -> tuple[Any, ...]:
    none, slopes = flat.no_grads(ctx.options), [grads[i] for i in DIFFERENTIABLE]
    if all(slope is None for slope in slopes):
        return tuple(none)
    saved = ctx.saved_tensors  # once: a checkpoint computes them anew
    found, tensors = saved[:8], saved[8:]
    arguments = [y if x is None else x for x, y in zip(tensors, ctx.options, strict=True)]
    needs = flat.trained(ctx.needs_input_grad)
    result = statistics_backward_op(slopes, *found, needs, *arguments)
    wanted = (g if need else None for g, need in zip(result, needs, strict=True))
    return flat.with_grads(none, wanted)


torch.library.register_autograd(statistics_op, _backward, setup_context=_setup)
