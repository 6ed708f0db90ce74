"""The public function: checks, then the custom op."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comal_kernels import checks
from comal_kernels.execution import Execution
from comal_kernels.head import Head
from comal_kernels.prox_loss.op import prox_loss_op, split
from comal_kernels.sharded import whole


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
    reward_margin: Tensor | None = None,  # (P,)
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
    grad_filter: float | None = None,
    average_log_prob: bool = False,
    loss_scale: float | None = None,
    **hyperparameters: object,
) -> ProxOutput:
    """One of the losses of PROX over packed sequences; loss and gradients in one pass over them.

    hidden, weight, target, bias, softcap, logit_scale, temperature, ignore_index, backend,
    workspace and grad_filter are those of `linear_logprob`. Pairs are packed into chunks whose
    logits fit the workspace; sequences that share a pair, however indirectly, share a chunk. What
    does not fit costs one more projection. Under no_grad, or where nothing requires grad, nothing
    but log-probs is computed; dW is skipped for a frozen head, dhidden for frozen states.

    Args:
        loss: a name in PROX.
            "dpo" (arXiv 2305.18290): beta, label_smoothing=0; reference.
            "ipo" (arXiv 2310.12036): eta; reference; preference or reward_margin.
            "inpo" (arXiv 2407.00617, inside COMAL arXiv 2410.23223): eta, tau_eta_ratio;
            reference and last; preference or reward_margin.
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
        reward_margin: (P,) r(chosen) − r(rejected) of each pair: rebel takes it in place of
            `reward`, ipo and inpo in place of `preference`, and regress the pair on it over eta.
            With win rates as r the minimiser does not depend on which pairs are chosen.
        pair_weight: (P,) any sign; 1 / P each by default.
        average_log_prob: length normalisation. Every log-prob that the loss compares, the policy's
            and the cached sums alike, is divided by its sequence's number of predicted tokens;
            `logp` and `ref_logp` of the result stay sums, the margin is one of means.
        loss_scale: a power of two by which gradients are larger from the forward pass, which makes
            them, to the backward pass, which applies the upstream factor; the result is the same.
            Small float16 gradients underflow without: give the factor that the loss is multiplied
            by, as of `GradScaler.get_scale()`. None: in float16 about the number of pairs, which
            undoes the mean, unless there is a `pair_weight`; else 1.
        group: (S,) integers, equal for responses to one prompt (dro without `value`).

    Index tensors may be on the CPU or on hidden's device; CPU ones spare the GPU a wait.

    Returns:
        ProxOutput; its loss is differentiable once in hidden, weight and bias, whose gradients have
        their dtypes and are accumulated in float32.

    Raises:
        ValueError: a wrong shape, dtype, device or range, a loss or hyperparameter that is not
            known, or an argument that the loss needs and lacks, or is given and would ignore.
    """
    prox = checks.loss_row(loss)
    ref_weight, ref_bias = whole(ref_weight, ref_hidden), whole(ref_bias, ref_hidden)
    head = Head(whole(weight, hidden), whole(bias, hidden), softcap, logit_scale, temperature)
    execution = Execution(backend, workspace, grad_filter)
    checks.head(hidden, head)
    checks.execution(execution)
    checks.flag("average_log_prob", average_log_prob)
    checks.targets(target, hidden.shape[0], ignore_index)
    count = checks.sequence_bounds(cu_seqlens)
    checks.pairs(prox, chosen, rejected)
    live = checks.reference(hidden, head, ref_logp, ref_hidden, ref_weight, ref_bias)
    checks.given(
        prox,
        ref=("ref_logp or ref_hidden", ref_logp is not None or live),
        last=("last_logp", last_logp is not None),
        preference=("preference", preference is not None),
        reward=("reward", reward is not None or checks.stands_for_reward(prox, reward_margin)),
        reward_margin=("reward_margin", reward_margin is not None),
    )
    checks.one_target(preference=preference, reward=reward, reward_margin=reward_margin)
    pairs = chosen.shape[0]
    hyper = checks.hyperparameters(prox, hyperparameters, pairs, count)
    checks.groups(prox, group, hyper, count)
    cached = checks.cached(count, ref_logp=ref_logp, last_logp=last_logp, reward=reward)
    labels = checks.per_pair(
        pairs, preference=preference, reward_margin=reward_margin, pair_weight=pair_weight
    )
    wanted = (hidden, head.weight, head.bias)
    needs = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in wanted]
    scale = checks.loss_scale(loss_scale, hidden.dtype, pairs, pair_weight is not None)
    total, logp, ref, margin, accuracy, per_pair, *_ = prox_loss_op(
        hidden,
        needs,
        scale,
        target,
        cu_seqlens,
        ignore_index,
        chosen,
        rejected,
        cached["ref_logp"],
        cached["last_logp"],
        ref_hidden.detach() if ref_hidden is not None else None,
        ref_weight.detach() if ref_weight is not None else None,
        ref_bias.detach() if ref_bias is not None else None,
        labels["preference"],
        cached["reward"],
        labels["reward_margin"],
        labels["pair_weight"],
        group,
        loss,
        *split(hyper),
        average_log_prob,
        *head.flat(),
        *execution.flat(),
    )
    return ProxOutput(
        loss=total,
        logp=logp,
        ref_logp=ref if "ref" in prox.uses else None,
        margin=margin,
        accuracy=accuracy,
        per_pair_loss=per_pair,
    )
