"""`linear_logprob(outputs=…)`: entropy and the others, their gradients, their reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from backends import BACKENDS
from comal_kernels import LogprobOutput, linear_logprob
from comal_kernels.execution import Execution
from comal_kernels.head import Head
from comal_kernels.linear_logprob.api import OUTPUTS
from comal_kernels.linear_logprob.statistics import statistics_backward_op, statistics_op

SHAPES = {
    "one token": (1, 16, 40),
    "nothing divides": (37, 19, 331),
    "several slices": (40, 24, 700),
}
OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "bias": {"bias": 1},
    "softcap": {"softcap": 3.0},
    "all": {"bias": 1, "softcap": 2.0, "logit_scale": 0.7, "temperature": 1.3},
}
DIFFERENTIABLE = ("logp", "entropy", "lse", "mean_logit", "topk")
SWEEPS = [each for each in BACKENDS if "softened" not in each[0]]  # raw logits are held for them


def logits(leaves: Sequence[Tensor], dtype: torch.dtype, **options: float) -> Tensor:
    z = leaves[0].to(dtype) @ leaves[1].to(dtype).t()
    if len(leaves) == 3:
        z = z + leaves[2].to(dtype)
    z = z * options.get("logit_scale", 1.0)
    if cap := options.get("softcap"):
        z = cap * torch.tanh(z / cap)
    return z / options.get("temperature", 1.0)


def plainly(z: Tensor, target: Tensor, k: int = 1) -> dict[str, Tensor]:
    """Each output from full logits, zeros where the target is ignored."""
    kept = target != -100
    word = torch.where(kept, target, 0)
    logp = z.log_softmax(-1)
    picked = logp.gather(-1, word[..., None])[..., 0]
    values, ids = logp.topk(k, -1)
    found = {
        "logp": picked,
        "entropy": -(logp.exp() * logp).sum(-1),
        "lse": z.logsumexp(-1),
        "mean_logit": z.mean(-1),
        "top1": z.argmax(-1) == word,
        "topk": values,
        "topk_ids": ids,
    }
    return {n: torch.where(kept[..., None] if x.dim() > kept.dim() else kept, x, 0)
            for n, x in found.items()}  # fmt: skip


def make(
    shape: tuple[int, int, int], dtype: torch.dtype, bias: bool, device: Any = "cpu"
) -> tuple[list[Tensor], Any]:
    torch.manual_seed(sum(shape))
    t, h, v = shape
    leaves = [torch.randn(t, h), torch.randn(v, h) / h**0.5 * 2, torch.randn(v)][: 2 + bias]
    target = torch.randint(0, v, (t,))
    target[1::5] = -100
    return [x.to(device, dtype).requires_grad_() for x in leaves], target.to(device)


def outcome(found: dict[str, Tensor], leaves: Sequence[Tensor], of: Sequence[str]) -> list[Tensor]:
    """Values, then gradients of a sum with its own factor at every place."""
    total = leaves[0].new_zeros((), dtype=torch.float64)
    for i, name in enumerate(of):
        x = found[name].double().flatten()
        total = total + x @ torch.linspace(-1, 2, len(x), dtype=torch.float64).roll(i).to(x.device)
    return [*(found[n].detach() for n in of), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("of", [*((n,) for n in DIFFERENTIABLE), DIFFERENTIABLE], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("backend", "dtype"), SWEEPS, ids=str)
def test_as_good_as_plain_torch(
    backend: str,
    dtype: torch.dtype,
    options: str,
    of: tuple[str, ...],
    assert_as_good: Callable[..., None],
    device: torch.device,
) -> None:
    for shape in SHAPES.values():
        kw: dict[str, Any] = dict(OPTIONS[options])
        leaves, target = make(shape, dtype, bool(kw.pop("bias", 0)), device)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        bias = leaves[2] if len(leaves) == 3 else None
        found = linear_logprob(
            *leaves[:2],
            target,
            bias=bias,
            outputs=of,
            k=3,
            workspace=16 * shape[2] * 4,
            backend=backend,
            **kw,
        )
        wide = [x.detach().double().requires_grad_() for x in leaves]
        ours = outcome(vars(found), leaves, of)
        plain = outcome(plainly(logits(leaves, compute, **kw), target, 3), leaves, of)
        exact = outcome(plainly(logits(wide, torch.float64, **kw), target, 3), wide, of)
        assert ours[0].dtype == compute and ours[-1].dtype == dtype
        assert_as_good(ours, plain, exact)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_the_log_probs_are_those_without_outputs(backend: str, dtype: torch.dtype) -> None:
    """Up to rounding; what is asked of either backend is there."""
    (hidden, weight), target = make((37, 19, 331), dtype, False)
    alone = linear_logprob(hidden, weight, target, backend=backend)
    found = linear_logprob(hidden, weight, target, backend=backend, outputs=OUTPUTS, k=2)
    assert found.logp is not None
    torch.testing.assert_close(found.logp, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_words_and_what_was_not_asked_for(backend: str) -> None:
    (hidden, weight), target = make((60, 8, 30), torch.float32, False)
    target[0] = int((hidden @ weight.t())[0].argmax())
    found = linear_logprob(hidden, weight, target, outputs=("topk", "top1"), k=40, backend=backend)
    want = plainly(logits((hidden, weight), torch.float32), target, 30)
    assert found.top1 is not None and found.top1.equal(want["top1"]) and found.top1.any()
    assert found.topk_ids is not None and found.topk_ids.equal(want["topk_ids"])
    assert {n for n, x in vars(found).items() if x is None} == {
        "logp", "entropy", "lse", "mean_logit",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_of_equals_the_first_is_the_likeliest(backend: str) -> None:
    hidden, weight = torch.ones(3, 2), torch.ones(700, 2)
    target = torch.tensor([0, 1, 699])
    for workspace in (None, 100):
        found = linear_logprob(
            hidden, weight, target, outputs=["top1"], workspace=workspace, backend=backend
        )
        assert found.top1 is not None and found.top1.tolist() == [True, False, False]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_words_that_are_masked(backend: str) -> None:
    """A bias of −∞ takes a word out; nothing becomes NaN, forward or backward."""
    dtype = torch.float64 if backend == "torch" else torch.float32
    leaves, target = make((6, 8, 50), dtype, True)
    with torch.no_grad():
        leaves[2][10:] = -math.inf
        leaves[2][:5] = -math.inf
    target = target % 5 + 5
    of = ("logp", "entropy", "lse", "topk")
    found = linear_logprob(*leaves[:2], target, bias=leaves[2], outputs=of, k=2, backend=backend)
    kept = [leaves[0], leaves[1][5:10], leaves[2][5:10]]
    want = outcome(plainly(logits(kept, dtype), target - 5, 2), leaves[:2], of)
    torch.testing.assert_close(outcome(vars(found), leaves[:2], of), want)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_large_logits(size: float, backend: str) -> None:
    """Near one word the entropy is near 0, not below by rounding of what is large."""
    hidden, weight = torch.randn(8, 4, dtype=torch.float32), size * torch.randn(300, 4)
    found = linear_logprob(
        hidden, weight, torch.arange(8), outputs=("entropy", "lse"), backend=backend
    )
    assert found.entropy is not None and found.lse is not None
    exact = plainly(logits((hidden, weight), torch.float64), torch.arange(8))
    assert (found.entropy - exact["entropy"]).abs().max() < 1e-2 * max(1.0, size / 1e4)
    assert bool((found.entropy >= -1e-6).all()) and bool(found.lse.isfinite().all())


SUMMED = ("logp", "entropy", "lse", "mean_logit", "top1")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", None])
def test_sequences_of_a_batch_and_packed(reduction: str | None) -> None:
    (hidden, weight), target = make((24, 5, 17), torch.float64, False)
    target[8:12] = -100  # nothing of a sequence counts
    cu = torch.tensor([0, 4, 8, 12, 16, 20, 24])
    batch = linear_logprob(
        hidden.view(6, 4, 5), weight, target.view(6, 4), reduction=reduction, outputs=SUMMED
    )
    packed = linear_logprob(
        hidden, weight, target, cu_seqlens=cu, reduction=reduction or "none", outputs=SUMMED
    )
    tokens = plainly(logits((hidden, weight), torch.float64), target)
    counts = (target.view(6, 4) != -100).sum(1).clamp(min=1)
    for name in SUMMED:
        want = tokens[name].view(6, 4).double()
        if reduction in ("sum", "mean"):
            want = want.sum(1) / (counts if reduction == "mean" else 1)
        ours, theirs = getattr(batch, name), getattr(packed, name)
        assert ours.shape == want.shape
        torch.testing.assert_close(ours.double(), want)
        torch.testing.assert_close(theirs.double().view(want.shape), want)
        if name == "logp":  # the same without outputs, gradients too
            alone = linear_logprob(
                hidden.view(6, 4, 5), weight, target.view(6, 4), reduction=reduction
            )
            torch.testing.assert_close(alone, ours)
            grads = [torch.autograd.grad(x.square().sum(), hidden)[0] for x in (alone, ours)]
            torch.testing.assert_close(*grads)
    mean = linear_logprob(hidden, weight, target, cu_seqlens=cu, reduction="mean")
    torch.testing.assert_close(mean, tokens["logp"].view(6, 4).sum(1) / counts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": "entropy"}, r"outputs: got 'entropy'; expected a sequence of logp, entropy"),
        ({"outputs": ()}, r"outputs: got \(\); expected a sequence"),
        ({"outputs": ("entropy", "kl")}, r"outputs: 'kl' is unknown; expected some of logp"),
        ({"outputs": ("topk",), "k": 0}, r"k: got 0; expected an int of at least 1"),
        ({"outputs": ("logp",), "grad_filter": 0.1}, r"grad_filter: given with outputs"),
        ({"reduction": "max"}, r"reduction: 'max'; expected 'none', 'sum', 'mean', or None"),
        ({"reduction": "mean"}, r"reduction: 'mean' of hidden \(T, H\); expected cu_seqlens"),
        ({"hidden": torch.ones(4)}, r"hidden: shape \(4,\); expected \(T, H\), or \(B, L, H\)"),
        ({"hidden": torch.ones(2, 3, 4)}, r"target: shape \(6,\); expected \(2, 3\), one for"),
        (
            {"hidden": torch.ones(2, 3, 4), "target": torch.zeros(2, 3).long(), "cu_seqlens": 1},
            r"cu_seqlens: given with hidden \(2, 3, 4\); expected packed hidden \(T, H\)",
        ),
        (
            {"outputs": ("topk",), "reduction": "sum", "cu_seqlens": torch.tensor([0, 6])},
            r"outputs: topk has no sum over a sequence; expected reduction='none'",
        ),
        ({"hidden": [1.0]}, r"hidden: got list; expected a tensor"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "hidden": torch.ones(6, 4),
        "weight": torch.ones(9, 4),
        "target": torch.zeros(6, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=words):
        linear_logprob(**given | change)


def test_gradcheck() -> None:
    leaves, target = make((5, 4, 11), torch.float64, True)

    def all_of_them(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        found = linear_logprob(
            hidden, weight, target, bias=bias, softcap=3.0, outputs=OUTPUTS, k=2, workspace=200
        )
        return tuple(getattr(found, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(all_of_them, leaves, fast_mode=False)


def test_opcheck() -> None:
    leaves, target = make((7, 5, 23), torch.float32, True)
    records = (*Head(leaves[1], leaves[2]).flat(), *Execution("torch", workspace=600).flat())
    arguments = (leaves[0], target, 2, -100, *records)
    torch.library.opcheck(statistics_op, arguments)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    found = statistics_op(*detached)
    slopes = [torch.ones(7), None, torch.ones(7), None, torch.ones(7, 2)]
    torch.library.opcheck(statistics_backward_op, (slopes, *found, [True] * 3, *detached))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_under_autocast_and_checkpointed(dynamic: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    leaves, target = make((12, 6, 40), torch.float32, False)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        found = linear_logprob(
            hidden.view(3, 4, 6) * 2, weight, target.view(3, 4), reduction="mean",
            outputs=("logp", "entropy"),
        )  # fmt: skip
        assert found.logp is not None and found.entropy is not None
        return (found.logp - 0.1 * found.entropy).sum()

    want = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), want)
    again = checkpoint(loss, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, leaves), want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(loss(*leaves), leaves), want)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nothing_counts(backend: str) -> None:
    hidden = torch.randn(4, 3, requires_grad=True)
    found = linear_logprob(
        hidden, torch.ones(5, 3), torch.full((4,), -100), outputs=OUTPUTS, backend=backend
    )
    assert isinstance(found, LogprobOutput) and found.entropy is not None
    (grad,) = torch.autograd.grad(found.entropy.sum(), hidden)
    assert found.entropy.tolist() == [0] * 4 and grad.abs().sum() == 0
