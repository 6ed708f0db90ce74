"""Losses of a user's own: any hyperparameters, or none; what `register` refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from comal_kernels import PROX, Hyper, Prox, prox_loss, register
from comal_kernels.derivative import RESIDUALS
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


def own(phi, dphi, **hyper: Hyper) -> Prox:
    return Prox("own", phi, dphi, anchor=lambda c: c["ref"], uses=("ref",), hyper=hyper)


WIDTH, SCALE = Hyper(1.0, low=0.0), Hyper(low=0.0, open_low=True)
RIGHT = {
    "square": own(lambda u, c: u * u, lambda u, c: 2.0 * u),
    "scaled": own(lambda u, c: (c["s"] * u) ** 2, lambda u, c: 2 * c["s"] ** 2 * u, s=SCALE),
    "linear, a plain number": own(lambda u, c: 3.0 * u, lambda u, c: 3.0),
    "tiny": own(lambda u, c: 1e-9 * u**3, lambda u, c: 3e-9 * u**2),
    "flat": own(lambda u, c: u * 0.0, lambda u, c: u * 0.0),
    "in single precision": own(lambda u, c: u.float() ** 2, lambda u, c: 2.0 * u.float()),
    "abs": own(lambda u, c: u.abs(), lambda u, c: u.sign()),
    "hinge": own(
        lambda u, c: (c["width"] - u).clamp(min=0),
        lambda u, c: -(u < c["width"]).double(),
        width=WIDTH,
    ),
    "a kink at a probe": own(
        lambda u, c: (u - RESIDUALS[4]).abs(), lambda u, c: (u - RESIDUALS[4]).sign()
    ),
    "half undefined": own(lambda u, c: u.log(), lambda u, c: 1.0 / u),
    "cannot run here": own(lambda u, c: u[:100].view(100), lambda u, c: u),
    "reads a tensor": own(
        lambda u, c: c["x"].square() * u, lambda u, c: c["x"].square(), x=Hyper(per="response")
    ),
}
WRONG = {
    "sign": own(lambda u, c: u * u, lambda u, c: -2.0 * u),
    "factor": own(lambda u, c: u * u, lambda u, c: u),
    "power of a hyperparameter": own(
        lambda u, c: (c["s"] * u) ** 2, lambda u, c: 2.0 * c["s"] * u, s=SCALE
    ),
    "one per cent": own(lambda u, c: u.exp(), lambda u, c: 1.01 * u.exp()),
    "side of a hinge": own(
        lambda u, c: (c["width"] - u).clamp(min=0),
        lambda u, c: (u < c["width"]).double(),
        width=WIDTH,
    ),
    "beyond its kink": own(lambda u, c: u.abs(), lambda u, c: torch.ones_like(u)),
    "half undefined": own(lambda u, c: u.log(), lambda u, c: u),
    "not a number": own(lambda u, c: u * u, lambda u, c: math.nan * u),
    "constant": own(lambda u, c: u * u, lambda u, c: 0.0),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_derivative_is_accepted(case) -> None:
    register(RIGHT[case])
    assert PROX["own"] is RIGHT[case]


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_derivative_is_refused(case) -> None:
    with pytest.raises(ValueError, match="'own': dphi is .* at the residual .*; expected"):
        register(WRONG[case])
    assert "own" not in PROX


@pytest.mark.parametrize("loss", PROX)
def test_the_probe_can_run_every_loss(loss) -> None:
    row = PROX[loss]
    with pytest.raises(ValueError, match="dphi is"):
        register(replace(row, dphi=lambda u, c: -row.dphi(u, c)), replace=True)
    assert PROX[loss] is row


def test_the_refusal_names_the_point_and_both_values() -> None:
    residual = math.sqrt(0.02)
    said = f"dphi is {residual:.6g} at the residual {residual:.4f}.* {2 * residual:.6g}$"
    with pytest.raises(ValueError, match=said):
        register(WRONG["factor"])


@pytest.mark.parametrize("loss", PROX)
def test_every_row_says_what_it_is(loss) -> None:
    lines = [PROX[loss].doc, *(x.doc for x in PROX[loss].hyper.values())]
    assert all(lines) and not any("\n" in line for line in lines)
