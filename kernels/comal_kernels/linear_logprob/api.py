"""The public function: checks, then the custom ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from comal_kernels import checks
from comal_kernels.execution import Execution
from comal_kernels.head import Head
from comal_kernels.linear_logprob.op import logprob_op
from comal_kernels.linear_logprob.parallel import over_ranks
from comal_kernels.linear_logprob.statistics import statistics_op
from comal_kernels.sharded import whole

OUTPUTS = ("logp", "entropy", "lse", "mean_logit", "top1", "topk")


@dataclass(frozen=True)
class LogprobOutput:
    """What `linear_logprob(outputs=…)` gives; None for what was not asked for.

    Each of target's shape, or reduced to a number a sequence; 0 where the target is ignored.
    float32 (float64 for float64 inputs), in nats. Differentiable, but for top1 and topk_ids.

    logp: log-prob of the target.
    entropy: −Σ p log p over the vocabulary.
    lse: log Σ exp z, the logits' log-sum-exp.
    mean_logit: mean of the logits z over the vocabulary.
    top1: whether the target is the likeliest word, of equals the first; bool, reduced a number.
    topk: (…, k) log-probs of the k likeliest words, descending; topk_ids: (…, k) those words.
    """

    logp: Tensor | None = None
    entropy: Tensor | None = None
    lse: Tensor | None = None
    mean_logit: Tensor | None = None
    top1: Tensor | None = None
    topk: Tensor | None = None
    topk_ids: Tensor | None = None


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reduction: str | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    outputs: None = None,
    k: int = 1,
    backend: str = "auto",
    workspace: int | None = None,
    grad_filter: float | None = None,
    group: Any = None,
) -> Tensor: ...


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reduction: str | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    outputs: Sequence[str],
    k: int = 1,
    backend: str = "auto",
    workspace: int | None = None,
    grad_filter: float | None = None,
    group: Any = None,
) -> LogprobOutput: ...


def linear_logprob(
    hidden: Tensor,  # (T, H), or (B, L, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,) int64, or (B, L)
    *,
    bias: Tensor | None = None,  # (V,)
    cu_seqlens: Tensor | None = None,  # (S + 1,) int32
    reduction: str | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    outputs: Sequence[str] | None = None,
    k: int = 1,
    backend: str = "auto",
    workspace: int | None = None,  # bytes
    grad_filter: float | None = None,
    group: Any = None,
) -> Tensor | LogprobOutput:  # (T,), (B, L), or a number a sequence
    """log softmax(z)[target] in nats, without ever holding the (T, V) logits z.

    z = softcap · tanh((hidden Wᵀ + bias) · logit_scale / softcap) / temperature, or without a cap
    z = (hidden Wᵀ + bias) · logit_scale / temperature.

    Args:
        hidden: (T, H) float32, bfloat16, float16 or float64; the states that predict `target`. Any
            leading shape, (B, L, H) say, where target has it too.
        weight: (V, H), the head, on hidden's device; taken in hidden's dtype, as autocast does.
        target: (T,) or hidden's leading shape, int64, already shifted; `ignore_index` where there
            is nothing to predict: those rows are never projected.
        bias: (V,), likewise. Either may be a DTensor that FSDP2 has sharded.
        cu_seqlens: (S + 1,) int32 or int64, 0 = first ≤ … ≤ last = T: packed sequences.
        reduction: "sum" or "mean" over the targets of each sequence that are not ignored: of
            cu_seqlens, or of the last leading axis, (B, L, H) → (B,); "none": one result per
            target. None: "sum" with cu_seqlens, else "none".
        outputs: names of `LogprobOutput`'s fields that are wanted beside or instead of logp, from
            the same pass; None: the log-probs alone, as a Tensor. Computed in plain torch on every
            device; `grad_filter` does not apply.
        k: how many words of "topk".
        backend: "auto" is "triton" on CUDA tensors and "torch" elsewhere, as on ROCm and on GPUs
            older than compute capability 8.0; "triton" runs on CPU tensors under
            TRITON_INTERPRET=1.
        workspace: bytes of logits held at a time (at least one row); None: 128 MiB on a CPU, 1 GiB
            on a GPU. Results do not depend on it beyond rounding; memory does not depend on T.
        grad_filter: None is exact. A probability ε: words whose d logp / d logit is below ε
            in every row of a chunk get and give no gradient there, so each entry of d loss /
            d logits that is left out is below ε · max |d loss / d logp|. 2⁻¹² is below
            bfloat16's resolution (Cut Cross-Entropy, arXiv 2411.09009, section 4.3). A ValueError
            on CUDA, where it takes longer than exact gradients do.
        group: of torch.distributed, a vocabulary-parallel head: `weight` and `bias` are the rows
            that this rank holds, in the order of ranks; hidden and target (ids of the whole
            vocabulary) are alike on all, and so is the result. hidden's gradient is summed over
            the ranks. Waits for the GPU.

    Returns:
        Log-probs of target's shape with 0 at ignored positions, or reduced, with 0 for an empty
        sequence; float32 (float64 for float64 inputs). With `outputs` a `LogprobOutput`.
        Differentiable once in hidden, weight and bias, whose gradients have their dtypes and are
        accumulated in float32.

    `target` and `cu_seqlens` may be on the CPU or on hidden's device; the plan is built on the
    host, so CPU tensors spare the GPU a synchronisation.

    Raises:
        ValueError: an argument's shape, dtype, device or range is wrong; named in the message.
    """
    checks.rows(hidden, target, cu_seqlens, reduction)
    reduction = reduction or ("none" if cu_seqlens is None else "sum")
    if group is not None:
        checks.outputs(outputs or ("logp",), OUTPUTS, k, reduction != "none")

        def local(states: Tensor, ids: Tensor, names: Sequence[str], most: int) -> LogprobOutput:
            return linear_logprob(
                states, weight, ids, outputs=names, k=most, ignore_index=ignore_index,
                temperature=temperature, backend=backend, workspace=workspace,
                grad_filter=grad_filter, bias=bias, softcap=softcap, logit_scale=logit_scale,
            )  # fmt: skip

        every = over_ranks(
            local, hidden, target, weight.shape[0], group, outputs or ("logp",), k, ignore_index
        )
        ends = (target, cu_seqlens, reduction, ignore_index)
        results = {n: x if n.startswith("topk") else _reduced(x, *ends) for n, x in every.items()}
        return LogprobOutput(**results) if outputs is not None else results["logp"]
    head = Head(whole(weight, hidden), whole(bias, hidden), softcap, logit_scale, temperature)
    execution = Execution(backend, workspace, grad_filter)
    shape, states, targets = target.shape, hidden, target
    if hidden.dim() > 2:
        states, targets = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    checks.head(states, head)
    checks.targets(targets, states.shape[0], ignore_index)
    if cu_seqlens is not None:
        checks.sequence_bounds(cu_seqlens)
    checks.execution(execution)
    records = (*head.flat(), *execution.flat())
    if outputs is None:
        cu = cu_seqlens if reduction == "sum" else None
        logp, _ = logprob_op(states, targets, cu, ignore_index, *records)
        if cu is not None:
            return logp
        return _reduced(logp.view(shape), target, cu_seqlens, reduction, ignore_index)
    checks.outputs(outputs, OUTPUTS, k, reduction != "none")
    if grad_filter is not None:
        raise ValueError("grad_filter: given with outputs; expected None, all of them are exact")
    most = min(k, head.weight.shape[0]) if "topk" in outputs else 0
    found = statistics_op(states, targets, most, ignore_index, *records)
    given = dict(zip(("logp", "lse", "entropy", "mean_logit", "top1"), found[:5], strict=True))
    results = {
        name: _reduced(x.view(shape), target, cu_seqlens, reduction, ignore_index)
        for name, x in given.items()
        if name in outputs
    }
    if "topk" in outputs:
        results |= {"topk": found[5].view(*shape, most), "topk_ids": found[6].view(*shape, most)}
    return LogprobOutput(**results)


def _reduced(
    x: Tensor, target: Tensor, cu_seqlens: Tensor | None, reduction: str, ignore_index: int
) -> Tensor:
    """x of target's shape, as it is, or summed or averaged over each sequence in float64."""
    if reduction == "none":
        return x
    sums = _sums(x, cu_seqlens)
    if reduction == "mean":
        counts = _sums((target != ignore_index).to(x.device), cu_seqlens)
        sums = sums / counts.clamp(min=1)
    return sums.to(x.dtype if x.is_floating_point() else torch.float32)


def _sums(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is None:
        return x.double().sum(-1)
    upto = torch.cat([x.new_zeros(1, dtype=torch.float64), x.double().cumsum(0)])
    bounds = cu_seqlens.to(x.device).long()
    return upto[bounds[1:]] - upto[bounds[:-1]]
