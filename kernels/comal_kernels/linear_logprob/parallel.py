"""A vocabulary-parallel head: each rank holds some words, and its numbers are put together.

The ranks see the same states and targets, and compute the same loss of what comes back. Per target
a few numbers travel forward, and the states' gradient backward (Megatron-LM, arXiv 1909.08053).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from comal_kernels.checks import refuse

Local = Callable[..., Any]  # (hidden, target, outputs, k) → a LogprobOutput of a rank's words


class _Shared(torch.autograd.Function):
    """What all ranks hold alike; its gradient is the sum of what each finds with its words."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        dist.all_reduce(total, group=ctx.group)
        return total.to(gradient.dtype), None


class _Gathered(torch.autograd.Function):
    """(ranks, …) of every rank's x. All go on to compute the same, so each knows its own slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.rank = dist.get_rank(group)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rank], None


def _gather(x: Tensor, group: Any) -> Tensor:
    found: Tensor = _Gathered.apply(x, group)
    return found


def over_ranks(
    local: Local,
    hidden: Tensor,  # (…, H), alike on all ranks
    target: Tensor,  # (…,), ids of the whole vocabulary
    words: int,  # rows of this rank's weight; ranks hold them in order
    group: Any,
    names: Sequence[str],
    k: int,
    ignore_index: int,
) -> dict[str, Tensor]:
    """LogprobOutput's fields of `names`, per target, over the words of all ranks."""
    sizes = _gather(torch.tensor([words], device=hidden.device), group).flatten()
    upto = sizes.cumsum(0)
    start, vocab = int(upto[dist.get_rank(group)]) - words, int(upto[-1])
    ids = target.to(hidden.device)
    counts = ids != ignore_index
    if bool((counts & ((ids < 0) | (ids >= vocab))).any()):
        refuse("target", "an id that no rank's weight holds", f"0 … {vocab - 1}, or ignore_index")
    here = counts & (ids >= start) & (ids < start + words)
    # another rank's word: any of ours, so that the row counts, and is left out of the sum
    mine = torch.where(here, ids - start, torch.where(counts, 0, ignore_index))
    wanted = {"lse", "logp"} | ({"entropy", "mean_logit"} & {*names})
    most = k if "topk" in names else 1
    if {"topk", "top1"} & {*names}:
        wanted.add("topk")
    states: Tensor = _Shared.apply(hidden, group)
    found = local(states, mine, sorted(wanted), most)
    lses = _gather(found.lse, group)  # (ranks, …)
    lse = lses.logsumexp(0).where(counts, 0.0)
    picked = _gather((found.logp + found.lse).where(here, 0.0), group).sum(0)
    result = {"lse": lse, "logp": (picked - lse).where(counts, 0.0)}
    if "entropy" in names:  # Σ p log p of a rank's own words, weighted by their share
        own = _gather(found.lse - found.entropy, group)
        mean = ((lses - lse).exp() * own).sum(0)
        result["entropy"] = (lse - mean).where(counts, 0.0)
    if "mean_logit" in names:
        means = _gather(found.mean_logit * (words / vocab), group)
        result["mean_logit"] = means.sum(0)
    if "topk" in wanted:
        logits = found.topk + found.lse[..., None]
        width = min(most, int(sizes.max()))
        logits = torch.nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
        numbers = torch.nn.functional.pad(
            found.topk_ids + start, (0, width - found.topk_ids.shape[-1])
        )
        every = _gather(logits, group).movedim(0, -2).flatten(-2)  # rank by rank: the first of
        which = _gather(numbers, group).movedim(0, -2).flatten(-2)  # equals stays the first
        order = every.sort(stable=True, dim=-1, descending=True).indices[..., : min(most, vocab)]
        best, top_ids = every.gather(-1, order), which.gather(-1, order)
        known = counts[..., None]
        result["topk"] = (best - lse[..., None]).where(known, 0.0)
        result["topk_ids"] = top_ids.where(known, 0)
        result["top1"] = (result["topk_ids"][..., 0] == ids) & counts
    kept = {*names} | ({"topk_ids"} if "topk" in names else set())
    return {name: x for name, x in result.items() if name in kept}
