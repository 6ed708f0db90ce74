"""The same loss in plain torch, pair by pair: autograd differentiates φ, nothing is chunked."""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.linear_logprob.reference import reference_logprob
from comal_kernels.prox import PROX
from comal_kernels.row import Terms


def reference_prox(
    logp: Tensor,  # (S,) differentiable
    *,
    loss: str,
    chosen: Tensor,  # (P,)
    rejected: Tensor | None = None,  # (P,)
    ref_logp: Tensor | None = None,  # (S,)
    last_logp: Tensor | None = None,  # (S,)
    preference: Tensor | None = None,  # (P,)
    reward: Tensor | None = None,  # (S,)
    reward_margin: Tensor | None = None,  # (P,)
    pair_weight: Tensor | None = None,  # (P,)
    group: Tensor | None = None,  # (S,)
    **hyper: float | Tensor | None,
) -> Tensor:  # ()
    """The loss () from sequence log-probs, in their dtype; arguments are trusted."""
    row = PROX[loss]
    dtype = logp.dtype

    def pairwise(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.to(dtype)
        return x[chosen] if rejected is None else x[chosen] - x[rejected]

    values = {k: hyper.get(k, rule.default) for k, rule in row.hyper.items()}
    solved = row.centred is not None and values[row.centred] is None
    numbers: dict[str, float | Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            value = value.to(dtype)
            numbers[name] = value[chosen] if row.hyper[name].per == "sequence" else value
        else:
            numbers[name] = 0.0 if value is None else float(value)
    count = len(chosen)
    if preference is None:
        preference = logp.new_ones(count)
    weight = logp.new_full((count,), 1.0 / count) if pair_weight is None else pair_weight.to(dtype)
    terms = Terms(
        pairwise(ref_logp),
        pairwise(last_logp),
        pairwise(reward) if reward_margin is None else reward_margin.to(dtype),
        preference.to(dtype),
        numbers,
    )
    z = pairwise(logp)
    assert z is not None
    u = z - row.offset(terms)
    if solved:
        assert group is not None
        member = group[chosen]
        for g in member.unique().tolist():
            here = member == g
            baseline = (weight[here] * u[here]).sum() / weight[here].sum()
            u = torch.where(here, u - baseline.detach(), u)
    return (weight * row.phi(u, terms)).sum()


def reference_prox_loss(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,)
    cu_seqlens: Tensor,  # (S + 1,)
    *,
    dtype: torch.dtype = torch.float64,
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    average_log_prob: bool = False,
    **loss: object,
) -> Tensor:  # ()
    """The loss () of `prox_loss`, with logits and everything after them in `dtype`."""
    logp = reference_logprob(
        hidden,
        weight,
        target,
        bias=bias,
        cu_seqlens=cu_seqlens,
        ignore_index=ignore_index,
        softcap=softcap,
        logit_scale=logit_scale,
        temperature=temperature,
        dtype=dtype,
    )
    if average_log_prob:
        bounds, kept = cu_seqlens.tolist(), (target != ignore_index).tolist()
        counts = [max(1, sum(kept[a:b])) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        tokens = torch.tensor(counts, device=logp.device)
        logp = logp / tokens
        for name in ("ref_logp", "last_logp"):
            sums = loss.get(name)
            if isinstance(sums, Tensor):
                loss[name] = sums.to(dtype) / tokens
    return reference_prox(logp, **loss)  # type: ignore[arg-type]
