"""Losses of a user's own: any hyperparameters, or none; what `register` refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from comal_kernels import PROX, Hyper, Prox, prox_loss, register
from comal_kernels.prox_loss.reference import reference_prox_loss

TARGET, CU = torch.arange(9) % 7, torch.tensor([0, 2, 5, 6, 9])
PAIRS = {"chosen": torch.tensor([0, 2, 3]), "rejected": torch.tensor([1, 1, 0])}
HYPER: dict[str, dict[str, Hyper]] = {
    "none": {},
    "numbers": {"scale": Hyper(0.7)},
    "a tensor": {"shift": Hyper(per="response")},
    "tensors": {"shift": Hyper(per="response"), "scale": Hyper(per="sequence")},
    "both": {"scale": Hyper(0.7), "shift": Hyper(per="response")},
}
TENSORS = {"response": torch.tensor([0.3, -1.0, 2.0]), "sequence": torch.tensor([1.0, 2, 3, 4])}


def leaves() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((9, 4), (7, 4), (7,))
    return [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("kind", HYPER)
def test_any_hyperparameters_or_none(kind, pairwise, compiled) -> None:
    """Forward and backward, against plain autograd through φ."""
    hyper = HYPER[kind]

    def scale(c):
        return c["scale"] if "scale" in hyper else 1.0

    def shift(c):
        return c["shift"] if "shift" in hyper else 0.0

    register(
        Prox(
            "own",
            phi=lambda u, c: scale(c) * (u - shift(c)) ** 2,
            dphi=lambda u, c: 2.0 * scale(c) * (u - shift(c)),
            anchor=lambda c: c["last"],
            pairwise=pairwise,
            uses=("last",),
            hyper=hyper,
        )
    )
    kw: dict[str, object] = {name: TENSORS[x.per] for name, x in hyper.items() if x.per}
    kw |= {"loss": "own", "last_logp": torch.tensor([-3.0, -5.0, -2.0, -7.0])}
    kw |= PAIRS if pairwise else {"chosen": PAIRS["chosen"]}

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return 3 * prox_loss(2 * hidden, weight, TARGET, CU, bias=bias, **kw).loss

    inputs = leaves()
    torch._dynamo.reset()  # its limit of compilations is one for all cases
    run = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    found = run(*inputs)
    hidden, weight, bias = inputs
    want = 3 * reference_prox_loss(2 * hidden, weight, TARGET, CU, bias=bias, **kw)
    torch.testing.assert_close(found, want)
    grads = (torch.autograd.grad(x, inputs) for x in (found, want))
    torch.testing.assert_close(*grads)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'ipo' is registered already"):
        register(PROX["ipo"])
    own = replace(PROX["ipo"], target=None)
    assert register(own, replace=True) is PROX["ipo"] is own


def test_unknown_terms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uses/optional name \['win'\]"):
        register(replace(PROX["ipo"], name="own", uses=("win",)))
    assert "own" not in PROX


@pytest.mark.parametrize("loss", PROX)
def test_every_row_says_what_it_is(loss) -> None:
    lines = [PROX[loss].doc, *(x.doc for x in PROX[loss].hyper.values())]
    assert all(lines) and not any("\n" in line for line in lines)
