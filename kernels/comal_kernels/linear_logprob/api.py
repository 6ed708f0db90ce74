"""The public function: checks, then the custom op."""

from __future__ import annotations

from torch import Tensor

from comal_kernels import checks
from comal_kernels.execution import Execution
from comal_kernels.head import Head
from comal_kernels.linear_logprob.op import logprob_op
from comal_kernels.sharded import whole


def linear_logprob(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,) int64
    *,
    bias: Tensor | None = None,  # (V,)
    cu_seqlens: Tensor | None = None,  # (S + 1,) int32
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    backend: str = "auto",
    workspace: int | None = None,  # bytes
    grad_filter: float | None = None,
) -> Tensor:  # (T,) or (S,)
    """log softmax(z)[target] in nats, without ever holding the (T, V) logits z.

    z = softcap · tanh((hidden Wᵀ + bias) · logit_scale / softcap) / temperature, or without a cap
    z = (hidden Wᵀ + bias) · logit_scale / temperature.

    Args:
        hidden: (T, H) float32, bfloat16, float16 or float64; the states that predict `target`.
        weight: (V, H), the head, of hidden's dtype and device.
        target: (T,) int64, already shifted; `ignore_index` where there is nothing to predict:
            those rows are never projected.
        bias: (V,), of hidden's dtype. Either may be a DTensor that FSDP2 has sharded.
        cu_seqlens: (S + 1,) int32 or int64, 0 = first ≤ … ≤ last = T; sums per sequence if given.
        backend: "auto" is "triton" on CUDA tensors and "torch" elsewhere; "triton" runs on CPU
            tensors under TRITON_INTERPRET=1.
        workspace: bytes of logits held at a time (at least one row); None: 128 MiB on a CPU, 1 GiB
            on a GPU. Results do not depend on it beyond rounding; memory does not depend on T.
        grad_filter: None is exact. A probability ε: words whose d logp / d logit is below ε
            in every row of a chunk get and give no gradient there, so each entry of d loss /
            d logits that is left out is below ε · max |d loss / d logp|. 2⁻¹² is below
            bfloat16's resolution (Cut Cross-Entropy, arXiv 2411.09009, section 4.3). Costs a wait
            for the GPU per chunk.

    Returns:
        Log-probs, (T,) with 0 at ignored positions, or sums (S,) with 0 for an empty sequence;
        float32 (float64 for float64 inputs). Differentiable once in hidden, weight and bias, whose
        gradients have their dtypes and are accumulated in float32.

    `target` and `cu_seqlens` may be on the CPU or on hidden's device; the plan is built on the
    host, so CPU tensors spare the GPU a synchronisation.

    Raises:
        ValueError: an argument's shape, dtype, device or range is wrong; named in the message.
    """
    head = Head(whole(weight), whole(bias), softcap, logit_scale, temperature)
    execution = Execution(backend, workspace, grad_filter)
    checks.head(hidden, head)
    checks.targets(target, hidden.shape[0], ignore_index)
    if cu_seqlens is not None:
        checks.sequence_bounds(cu_seqlens)
    checks.execution(execution)
    records = (*head.flat(), *execution.flat())
    logp, _ = logprob_op(hidden, target, cu_seqlens, ignore_index, *records)
    return logp
