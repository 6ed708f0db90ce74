"""linear_logprob is as close to the float64 reference as plain torch is, on every backend."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backends import BACKENDS
from comal_kernels import linear_logprob
from comal_kernels.linear_logprob.reference import reference_logprob

SHAPES = {
    "one token": (1, 16, 40),
    "nothing divides": (37, 19, 331),  # no block size divides T, H or V
    "several tiles": (70, 96, 300),  # more than one block of rows, of H and of V
}
OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "bias": {"bias": 1},
    "softcap": {"softcap": 3.0},
    "all": {"bias": 1, "softcap": 2.0, "logit_scale": 0.7, "temperature": 1.3},
}


def make(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, bias: bool
) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(sum(shape))
    t, h, v = shape
    hidden = torch.randn(t, h).to(device, dtype).requires_grad_()
    weight = (torch.randn(v, h) / h**0.5 * 2).to(device, dtype).requires_grad_()
    leaves = [hidden, weight]
    if bias:
        leaves.append(torch.randn(v).to(device, dtype).requires_grad_())
    target = torch.randint(0, v, (t,))
    target[1::5] = -100
    return leaves, target


def outcome(function: Callable[..., Tensor], leaves: list[Tensor], *args: object, **kw: object):
    names = {"bias": leaves[2]} if len(leaves) == 3 else {}
    logp = function(*leaves[:2], *args, **names, **kw)
    upstream = torch.linspace(-1, 2, len(logp), dtype=logp.dtype, device=logp.device)
    return [logp.detach(), *torch.autograd.grad(logp @ upstream, leaves)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=str, indirect=["backend"])
def test_as_good_as_plain_torch(backend, dtype, shape, options, device, assert_as_good) -> None:
    kw = dict(OPTIONS[options])
    if backend == "triton" and shape == "several tiles" and options in ("bias", "softcap"):
        pytest.skip("interpreted: covered by plain and all")
    leaves, target = make(SHAPES[shape], dtype, device, bool(kw.pop("bias", 0)))
    there = target.to(device)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    workspace = 16 * SHAPES[shape][2] * compute.itemsize  # chunks of 16 rows
    ours = outcome(linear_logprob, leaves, target, backend=backend, workspace=workspace, **kw)
    plain = outcome(reference_logprob, leaves, there, dtype=compute, **kw)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = outcome(reference_logprob, wide, there, **kw)
    assert ours[0].dtype == compute
    assert [g.dtype for g in ours[1:]] == [dtype] * len(leaves)
    assert_as_good(ours, plain, exact)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_sums_per_sequence(backend, device) -> None:
    (hidden, weight), target = make((12, 8, 50), torch.float32, device, False)
    target[7:9] = -100  # a sequence of ignored tokens only
    # an empty sequence first, in the middle and last; a one-token sequence
    cu = torch.tensor([0, 0, 1, 1, 7, 9, 12, 12], dtype=torch.int32)
    sums = linear_logprob(hidden, weight, target, cu_seqlens=cu, backend=backend)
    tokens = linear_logprob(hidden, weight, target, backend=backend)
    spans = zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)
    torch.testing.assert_close(sums, torch.stack([tokens[a:b].sum() for a, b in spans]))
    assert sums[[0, 2, 4, 6]].tolist() == [0, 0, 0, 0]
    (dsum,) = torch.autograd.grad(sums.sum(), hidden)
    (dtoken,) = torch.autograd.grad(tokens.sum(), hidden)
    torch.testing.assert_close(dsum, dtoken)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("length", [0, 6])
def test_nothing_to_predict(backend, length, device) -> None:
    """No token, or ignored ones only: zeros, and zero gradients rather than none."""
    hidden = torch.randn(length, 8, device=device, requires_grad=True)
    weight = torch.randn(20, 8, device=device, requires_grad=True)
    logp = linear_logprob(hidden, weight, torch.full((length,), -100), backend=backend)
    grads = torch.autograd.grad(logp.sum(), (hidden, weight))
    assert logp.shape == (length,) and not logp.any()
    assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_word(backend, device) -> None:
    """A vocabulary of one: log-prob 0 and no gradient, up to the rounding of the logits."""
    leaves, target = make((5, 8, 1), torch.float32, device, True)
    for result in outcome(linear_logprob, leaves, target, backend=backend):
        assert result.abs().max() <= 2e-5


def test_other_ignore_index_is_a_target_that_counts(device) -> None:
    (hidden, weight), target = make((9, 8, 30), torch.float32, device, False)
    target = target.clamp(min=0)
    target[2] = 7
    logp = linear_logprob(hidden, weight, target, ignore_index=7)
    assert logp[2] == 0 and (logp[target.to(device) != 7] < 0).all()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(softcap, packed) -> None:
    leaves, target = make((7, 3, 11), torch.float64, torch.device("cpu"), True)
    cu = torch.tensor([0, 3, 3, 7]) if packed else None

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_logprob(
            hidden, weight, target, bias=bias, cu_seqlens=cu, softcap=softcap, workspace=200
        )

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_frozen_inputs_get_nothing(backend, device) -> None:
    (hidden, weight), target = make((9, 8, 30), torch.float32, device, False)
    want = torch.autograd.grad(
        linear_logprob(hidden, weight, target, backend=backend).sum(), (hidden, weight)
    )
    frozen_head = linear_logprob(hidden, weight.detach(), target, backend=backend)
    frozen_states = linear_logprob(hidden.detach(), weight, target, backend=backend)
    assert torch.equal(torch.autograd.grad(frozen_head.sum(), hidden)[0], want[0])
    assert torch.equal(torch.autograd.grad(frozen_states.sum(), weight)[0], want[1])
    with torch.no_grad():
        assert not linear_logprob(hidden, weight, target, backend=backend).requires_grad


def test_large_logits_stay_finite(device) -> None:
    """Logits of ±1e4 overflow a plain exp."""
    hidden = torch.full((2, 1), 1e4, device=device, requires_grad=True)
    weight = torch.tensor([[-1.0], [1.0], [0.0]], device=device, requires_grad=True)
    logp = linear_logprob(hidden, weight, torch.tensor([1, 0]))
    assert logp.tolist() == [0.0, -20000.0]
    grads = torch.autograd.grad(logp.sum(), (hidden, weight))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_same_bits_every_time(backend, device) -> None:
    leaves, target = make((37, 19, 331), torch.float32, device, False)
    first, second = (
        outcome(linear_logprob, leaves, target, backend=backend, workspace=16 * 331 * 4)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case", ["masked words first", "logits in the thousands", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_largest_logit_far_above_the_first_words(case: str, dtype: torch.dtype) -> None:
    """2048 rows: a slice is 1024 words at most, so the largest logit comes in a later one."""
    leaves, target = make((2048, 8, 3000), dtype, torch.device("cpu"), bias=True)
    hidden, weight, bias = (x.detach() for x in leaves)
    if case != "logits in the thousands":
        bias[:2000] = float("-inf")  # as models with padded vocabularies do
        target = torch.where(target < 0, target, 2000 + target % 1000)
    if case != "masked words first":
        weight[2500:] *= 1000.0
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    exact = outcome(
        reference_logprob, [x.detach().double().requires_grad_() for x in leaves], target
    )
    same = outcome(reference_logprob, leaves, target, dtype=dtype)
    found = outcome(linear_logprob, leaves, target, backend="torch")
    for mine, plain, right in zip(found, same, exact, strict=True):
        assert mine.isfinite().all()
        error, allowed = ((x.double() - right).norm() for x in (mine, plain))
        assert error <= 2 * allowed + 1e-7 * right.norm()
