"""What only a GPU can show: heads of real vocabularies, and steps that must have the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.models import load
from bench.pairs import plain_logps, random_pairs
from bench.trainers.base import Finished, Mode, Task
from bench.trainers.ours import train
from comal_fast.system.machine import sum_in_one_order
from comal_kernels import linear_logprob, prox_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WIDTH, TOKENS = 4096, 512


def head(vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(vocab)
    given = {"device": "cuda", "generator": generator}
    states = torch.randn(TOKENS, WIDTH, **given).bfloat16()
    weight = (torch.randn(vocab, WIDTH, **given) * (2 / WIDTH**0.5)).bfloat16()
    return states, weight, torch.randint(vocab, (TOKENS,), **given)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("vocab", [128_256, 151_936, 50_257])
def test_heads_of_real_vocabularies(vocab: int) -> None:
    """Log-probs and gradients are as close to float64 as twice those of plain bfloat16."""
    states, weight, target = head(vocab)
    pairs = torch.arange(8).view(2, 4)
    cu = torch.arange(0, TOKENS + 1, TOKENS // 8, dtype=torch.int32)
    ref = torch.full((8,), -12.0 * TOKENS / 8)

    def dpo(logp: torch.Tensor) -> torch.Tensor:
        rewards = logp.view(8, -1).sum(1) - ref.to(logp)
        return -torch.nn.functional.logsigmoid(0.1 * (rewards[pairs[0]] - rewards[pairs[1]])).mean()

    def plain(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (states, weight)]
        logits = leaves[0] @ leaves[1].t()
        logits = logits if dtype == torch.float64 else logits.float()
        logp = -torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return logp.detach(), *torch.autograd.grad(dpo(logp), leaves)

    exact, rounded = plain(torch.float64), plain(torch.bfloat16)
    leaves = [x.detach().requires_grad_() for x in (states, weight)]
    loss = prox_loss(
        *leaves, target.cpu(), cu, loss="dpo", chosen=pairs[0], rejected=pairs[1], ref_logp=ref,
        beta=0.1,
    ).loss  # fmt: skip
    with torch.no_grad():
        logp = linear_logprob(states, weight, target).logp
    found = (logp, *torch.autograd.grad(loss, leaves))
    for name, ours, theirs, true in zip(("logp", "dX", "dW"), found, rounded, exact, strict=True):
        assert relative(ours, true) <= 2 * relative(theirs, true) + 1e-6, name


@pytest.fixture
def one_order() -> Iterator[None]:
    """Sum in one order within the test, as `training.deterministic` does.

    cuBLAS reads CUBLAS_WORKSPACE_CONFIG once, so bench/gpu.sh sets it for the whole process.
    """
    sum_in_one_order()
    yield
    torch.use_deterministic_algorithms(False)


class Steps:
    """A turn of a trainer that ends after some steps."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, []  # type: tuple[int, list[tuple[float, float]]]

    def wait(self) -> None:
        if len(self.seen) == self.count:
            raise Finished

    def done(self, loss: float, grad_norm: float) -> None:
        self.seen.append((loss, grad_norm))


@pytest.mark.parametrize("liger", [False, True])
def test_two_deterministic_steps_have_the_same_bits(
    liger: bool, one_order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.trainers.ours.LEARNING_RATE", 1e-4)
    pairs = random_pairs(512, 8, 24, 96, share=2)
    results = []
    for _ in range(2):
        model = load("tiny", torch.device("cuda"), torch.bfloat16, liger)
        given = pairs.with_reference(plain_logps(model, pairs))
        turn = Steps(3)
        with pytest.raises(Finished):
            train(Task(model, given, Mode(8)), turn)
        results.append((turn.seen, [p.detach().clone() for p in model.parameters()]))
    (first, one), (second, two) = results
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
