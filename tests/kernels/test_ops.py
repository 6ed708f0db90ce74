"""The custom ops inside torch's own machinery: opcheck, compile, checkpointing, autocast."""

import pytest
import torch
from torch import Tensor

from comal_kernels import linear_logprob, prox_loss
from comal_kernels.execution import Execution
from comal_kernels.head import Head
from comal_kernels.linear_logprob.op import logprob_backward_op, logprob_op
from comal_kernels.prox_loss.op import prox_loss_op

LENGTHS, WIDTH, VOCAB = [4, 0, 6, 3], 5, 23
LENGTH = sum(LENGTHS)
CU = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
EXECUTION = Execution("torch", workspace=6 * VOCAB * 4)


def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((LENGTH, WIDTH), (VOCAB, WIDTH), (VOCAB,))
    return [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]


def target() -> Tensor:
    found = torch.randint(0, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(1))
    found[::5] = -100
    return found


def loss_arguments(name: str) -> dict[str, object]:
    last = {"last_logp": torch.tensor([-9.0, -1.0, -12.0, -7.0])}
    ref = {"ref_logp": torch.tensor([-10.0, 0.0, -13.0, -6.0])}
    pairs = {"chosen": torch.tensor([0, 2, 2]), "rejected": torch.tensor([2, 3, 1])}
    return {
        "inpo": {**pairs, **ref, **last, "eta": 0.1, "tau_eta_ratio": 0.3},
        "dpo": {**pairs, **ref, "beta": 0.1, "preference": torch.tensor([1.0, 0.3, 0.6])},
        "sppo": {
            **last,
            "chosen": torch.tensor([0, 2]),
            "preference": torch.tensor([0.2, 0.9]),
            "eta": 0.1,
            "log_z": torch.tensor([0.1, -0.2]),
        },
    }[name] | {"loss": name}


def records(weight: Tensor, bias: Tensor) -> tuple[object, ...]:
    """The end of each op's arguments."""
    return (*Head(weight, bias, 3.0, 0.7, 1.3).flat(), *EXECUTION.flat())


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_logprob(packed) -> None:
    hidden, *head = leaves()
    index = (target(), CU if packed else None, -100)
    torch.library.opcheck(logprob_op, (hidden, *index, *records(*head)))
    hidden, *head = (x.detach() for x in (hidden, *head))
    arguments = (hidden, *index, *records(*head))
    lse, count = logprob_op(*arguments)[1], len(LENGTHS) if packed else LENGTH
    needs = [True, False, True]
    torch.library.opcheck(logprob_backward_op, (torch.ones(count), lse, needs, *arguments))


def test_opcheck_prox_loss() -> None:
    hidden, *head = leaves()
    kw = loss_arguments("inpo")
    pairs = [kw["chosen"], kw["rejected"], kw["ref_logp"], kw["last_logp"], *[None] * 8]
    loss = ["inpo", [None, None], [0.1, 0.3], False]
    index = [[True, True, True], 1.0, target(), CU, -100]
    torch.library.opcheck(prox_loss_op, (hidden, *index, *pairs, *loss, *records(*head)))


def run(function, *inputs: Tensor) -> list[Tensor]:
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic) -> None:
    """fullgraph: torch.compile finds nothing that it cannot trace."""

    def logprob(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logp = linear_logprob(2 * hidden, weight, target_, bias=bias, cu_seqlens=CU, softcap=2.0)
        return logp.square().sum()

    def prox(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = hidden.new_zeros(())
        for kw in arguments:
            out = prox_loss(hidden.tanh(), weight, target_, CU, bias=bias, **kw)
            total = total + 3 * out.loss + out.margin.sum()
        return total

    target_, arguments = target(), [loss_arguments(n) for n in ("inpo", "dpo", "sppo")]
    for function in (logprob, prox):
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        torch.testing.assert_close(run(compiled, *leaves()), run(function, *leaves()))


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    def prox(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return prox_loss(hidden.tanh(), weight, target_, CU, bias=bias, **kw).loss

    target_, kw = target(), loss_arguments("inpo")
    compiled = torch.compile(prox, fullgraph=True)
    torch.testing.assert_close(run(compiled, *leaves()), run(prox, *leaves()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant) -> None:
    from torch.utils.checkpoint import checkpoint

    def prox(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return prox_loss(hidden.tanh(), weight, target_, CU, bias=bias, **kw).loss

    def saved(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return checkpoint(prox, hidden, weight, bias, use_reentrant=reentrant)

    target_, kw = target(), loss_arguments("inpo")
    want = run(prox, *leaves())
    inputs = leaves()
    out = saved(*inputs)
    out.backward()
    torch.testing.assert_close([out.detach(), *(x.grad for x in inputs)], want)


def test_second_derivatives_are_refused() -> None:
    hidden, weight, bias = leaves()
    loss = prox_loss(hidden, weight, target(), CU, bias=bias, **loss_arguments("inpo")).loss
    logp = linear_logprob(hidden, weight, target()).sum()
    for out in (3 * loss, logp.square()):
        (grad,) = torch.autograd.grad(out, hidden, create_graph=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(grad.square().sum(), weight)


def test_wrong_values_are_named_inside_the_op_too() -> None:
    hidden, weight, _ = leaves()
    compiled = torch.compile(linear_logprob, fullgraph=True, backend="aot_eager")
    bad = target()
    bad[3] = VOCAB
    for function in (linear_logprob, compiled):
        with pytest.raises(ValueError, match="target: 23 at position 3"):
            function(hidden, weight, bad)
