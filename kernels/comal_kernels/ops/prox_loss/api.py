"""The public function: checks, an index plan, the reference, then the autograd Function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comal_kernels import checks
from comal_kernels.backend import resolve, rows_within
from comal_kernels.head import Head, compute_dtype
from comal_kernels.ops.linear_logprob.autograd import Rows, token_logps
from comal_kernels.ops.prox_loss.autograd import ProxLoss, Work
from comal_kernels.ops.prox_loss.step import Inputs, ProxStep
from comal_kernels.plan import Ints, make_plan, to_device
from comal_kernels.segment import segment_sum


@dataclass(frozen=True)
class ProxOutput:
    """What a prox loss gives. All but `loss` are detached. float32 (float64 for float64 inputs).

    loss: () Σ pair_weight · per_pair_loss, differentiable once, with any upstream factor.
    logp: (S,) sum of each sequence's log-probs under the policy, in nats.
    ref_logp: (S,) the same under the reference, given or computed; None for losses without one.
    margin: (P,) implicit reward margin z − anchor, z = logp(chosen) − logp(rejected) or one
        response's logp, anchor the reference mix (dpo, ipo, dro: reference; inpo: τ/η reference +
        (1 − τ/η) last; sppo, rebel: last). dpo's is multiplied by beta, as TRL's rewards/margins.
    accuracy: () share of pairs with margin > 0; for per-response losses, of responses whose margin
        has the sign that the loss pulls it towards.
    per_pair_loss: (P,) before pair_weight.
    """

    loss: Tensor
    logp: Tensor
    ref_logp: Tensor | None
    margin: Tensor
    accuracy: Tensor
    per_pair_loss: Tensor


def prox_loss(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,) int64
    cu_seqlens: Tensor,  # (S + 1,) int32
    *,
    loss: str,
    chosen: Tensor,  # (P,) int64
    rejected: Tensor | None = None,  # (P,) int64
    ref_logp: Tensor | None = None,  # (S,)
    last_logp: Tensor | None = None,  # (S,)
    ref_hidden: Tensor | None = None,  # (T, H')
    ref_weight: Tensor | None = None,  # (V, H')
    preference: Tensor | None = None,  # (P,)
    reward: Tensor | None = None,  # (S,)
    pair_weight: Tensor | None = None,  # (P,)
    backend: str = "auto",
    bias: Tensor | None = None,  # (V,)
    ref_bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    group: Tensor | None = None,  # (S,) int64
    workspace: int | None = None,  # bytes
    **hyperparameters: object,
) -> ProxOutput:
    """One of the losses of PROX over packed sequences; loss and gradients in one pass over them.

    hidden, weight, target, bias, softcap, logit_scale, temperature, ignore_index, backend and
    workspace are those of `linear_logprob`. Pairs are packed into chunks whose logits fit the
    workspace; sequences that share a pair, however indirectly, share a chunk. What does not fit
    costs one more projection. Under no_grad, or where nothing requires grad, nothing but log-probs
    is computed; dW is skipped for a frozen head, dhidden for frozen states.

    Args:
        loss: a name in PROX.
            "dpo" (arXiv 2305.18290): beta, label_smoothing=0; reference.
            "ipo" (arXiv 2310.12036): eta; reference.
            "inpo" (arXiv 2407.00617, inside COMAL arXiv 2410.23223): eta, tau_eta_ratio;
            reference and last.
            "sppo" (arXiv 2405.00675): eta, log_z=0 (number or (P,)); last, preference.
            "dro" (arXiv 2405.19107): tau, value=None ((S,), no gradient); reference, reward;
            value None: `group` is needed, and V is each group's weighted mean of
            r − τ (logp − ref), a constant in the gradient (it minimises the loss).
            "rebel" (arXiv 2404.16767): eta; last, reward.
        chosen, rejected: (P,) sequences of each pair, a sequence in as many pairs as wanted.
            rejected is None for the per-response losses sppo and dro: `chosen` lists responses.
        ref_logp, last_logp: (S,) cached sums of log-probs of the reference and the last iterate.
        ref_hidden, ref_weight: instead of ref_logp: (T, H'), (V, H') from which it is computed,
            without gradient, under the same softcap, scale and temperature; `ref_bias` if `bias`.
        preference: (P,) P̂(chosen ≻ rejected) in [0, 1], 1 by default (dpo, ipo, inpo);
            P̂(y ≻ π_t) per listed response (sppo).
        reward: (S,) one per sequence (dro, rebel).
        pair_weight: (P,) any sign; 1 / P each by default.
        group: (S,) integers, equal for responses to one prompt (dro without `value`).

    Index tensors may be on the CPU or on hidden's device; CPU ones spare the GPU a wait.

    Raises:
        ValueError: a wrong shape, dtype, device or range, a loss or hyperparameter that is not
            known, an argument that the loss needs and lacks, or is given and would ignore.
    """
    prox = checks.loss_row(loss)
    checks.projection("", hidden, weight, bias)
    head = checks.head_options(weight, bias, softcap, logit_scale, temperature)
    checks.workspace(workspace)
    host = checks.targets(target, hidden.shape[0], weight.shape[0], ignore_index)
    cu = checks.sequence_bounds(cu_seqlens, hidden.shape[0])
    count = len(cu) - 1
    first, second = checks.pairs(prox, chosen, rejected, count)
    ref_head = checks.reference(hidden, head, ref_logp, ref_hidden, ref_weight, ref_bias)
    checks.given(
        prox,
        ref=("ref_logp or ref_hidden", ref_logp is not None or ref_head is not None),
        last=("last_logp", last_logp is not None),
        preference=("preference", preference is not None),
        reward=("reward", reward is not None),
    )
    hyper = checks.hyperparameters(prox, hyperparameters, len(first), count)
    groups = checks.groups(prox, group, hyper, count)
    cached = checks.cached(count, ref_logp=ref_logp, last_logp=last_logp, reward=reward)
    labels = checks.per_pair(len(first), preference=preference, pair_weight=pair_weight)
    backend = resolve(backend, hidden)

    device, dtype = hidden.device, compute_dtype(hidden.dtype)
    wanted = (hidden, weight, bias)
    needs = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in wanted]
    capacity = rows_within(head, workspace)
    plan = make_plan(
        host,
        cu,
        first,
        second,
        ignore_index=ignore_index,
        capacity=capacity,
        grad=any(needs),
        group=groups,
    )
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        ref = cached["ref_logp"]
        if ref_head is not None and ref_hidden is not None:
            rows = _reference_rows(host, cu, ignore_index, ref_head, workspace, backend, device)
            logp, _ = token_logps(ref_head, ref_hidden.detach(), rows)
            assert rows.lengths is not None
            ref = segment_sum(logp.double(), rows.lengths)
        inputs = Inputs(
            chosen=to_device(first, device),
            rejected=None if second is None else to_device(second, device),
            ref=ref,
            last=cached["last_logp"],
            reward=cached["reward"],
            preference=labels["preference"],
            weight=labels["pair_weight"],
            hyper=hyper,
        )
        step = ProxStep(prox, inputs, plan, device)
    work = Work(head, plan, step, capacity, backend, (needs[0], needs[1], needs[2]))
    with torch.autocast(device.type, enabled=False):
        total = ProxLoss.apply(hidden, weight, bias, work)
    return _output(total, step, ref, dtype)


def _reference_rows(
    target: Ints,  # (T,)
    cu: Ints,  # (S + 1,)
    ignore_index: int,
    head: Head,
    workspace: int | None,
    backend: str,
    device: torch.device,
) -> Rows:
    kept = np.flatnonzero(target != ignore_index)
    return Rows(
        row=to_device(kept, device),
        target=to_device(target[kept], device),
        lengths=to_device(np.diff(np.searchsorted(kept, cu)), device),
        capacity=rows_within(head, workspace),
        backend=backend,
    )


def _output(loss: Tensor, step: ProxStep, ref: Tensor | None, dtype: torch.dtype) -> ProxOutput:
    scale = step.terms.hyper[step.prox.scale] if step.prox.scale else 1.0
    hit = step.margin > 0 if step.prox.pairwise else step.margin * step.wanted > 0
    return ProxOutput(
        loss=loss,
        logp=step.logp.to(dtype),
        ref_logp=None if ref is None else ref.to(step.device, dtype),
        margin=step.caller_order(step.margin * scale).to(dtype),
        accuracy=hit.to(dtype).mean(),
        per_pair_loss=step.caller_order(step.loss).to(dtype),
    )
