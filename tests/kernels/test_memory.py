"""No tensor of T × V is ever made, and what is made does not grow with T."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comal_kernels import linear_logprob, prox_loss

WIDTH, VOCAB, ROWS = 8, 1000, 12
WORKSPACE = ROWS * VOCAB * 4


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that any operation's result lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


def inputs(
    length: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(length, WIDTH, requires_grad=True, device=device)
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True, device=device)
    return hidden, weight, torch.randint(0, VOCAB, (length,), device=device)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_log_probs(backend, options, device) -> None:
    if backend == "triton" and options:
        pytest.skip("interpreted: the same buffers")
    hidden, weight, target = inputs(60, device)
    with Largest() as seen:
        logp = linear_logprob(
            hidden, weight, target, backend=backend, workspace=WORKSPACE, **options
        )
        forward = seen.bytes
        logp.sum().backward()
    if backend == "triton":
        assert forward <= max(4 * WIDTH * VOCAB, 4 * 60 * 32 * 3), (
            "forward only holds no logits at all"
        )
    assert seen.bytes <= WORKSPACE < 60 * VOCAB * 4


@pytest.mark.parametrize("lengths", [[5] * 12, [30, 30]], ids=["whole pairs", "a long pair"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_prox_loss(backend, lengths, device) -> None:
    hidden, weight, target = inputs(60, device)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    seqs = torch.arange(len(lengths))
    with Largest() as seen:
        out = prox_loss(
            hidden,
            weight,
            target,
            cu,
            loss="ipo",
            chosen=seqs[::2],
            rejected=seqs[1::2],
            ref_logp=torch.zeros(len(lengths)),
            eta=0.1,
            backend=backend,
            workspace=WORKSPACE,
        )
        (2 * out.loss).backward()
    assert seen.bytes <= WORKSPACE < 60 * VOCAB * 4


def test_a_small_batch_takes_less_than_the_workspace() -> None:
    hidden, weight, target = inputs(4)
    with Largest() as seen:
        linear_logprob(hidden, weight, target).sum().backward()
    assert seen.bytes <= 4 * WIDTH * VOCAB


def test_half_precision_never_widens_the_whole_head(monkeypatch) -> None:
    from comal_kernels.engines import torch as torch_engine

    hidden, weight, target = inputs(20)
    leaves = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]

    def run() -> tuple[torch.Tensor, ...]:
        logp = linear_logprob(*leaves, target, workspace=4 * VOCAB * 3)
        return logp.detach(), *torch.autograd.grad(logp.sum(), leaves)

    whole = run()
    monkeypatch.setattr(torch_engine, "CAST_BYTES", 70 * WIDTH * 4)  # the last slice is shorter
    torch.testing.assert_close(run(), whole)
    frozen = leaves[1].detach()
    with Largest() as seen:
        linear_logprob(leaves[0], frozen, target, workspace=4 * VOCAB).sum().backward()
    assert seen.bytes <= 2 * WIDTH * VOCAB, "no more than the bfloat16 head itself"


def test_the_way_back_makes_nothing() -> None:
    """The gradients are there since the way forward: no zeros for outputs that have none."""
    hidden, weight, target = inputs(60)
    pair = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1])}
    cu = torch.tensor([0, 30, 60])
    out = prox_loss(
        hidden, weight, target, cu, loss="ipo", eta=0.1, ref_logp=torch.zeros(2), **pair
    )
    with torch.profiler.profile(profile_memory=True) as seen:
        torch.autograd.grad(out.loss, (hidden, weight))
    made = sum(max(0, event.self_cpu_memory_usage) for event in seen.events())
    assert made < weight.nbytes / 10
