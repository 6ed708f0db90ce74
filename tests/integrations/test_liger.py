"""In Liger's place: its outputs and gradients, on its arguments; and what it does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from comal_kernels.integrations.liger import FORMULAS, FusedLinearDPOLoss

PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "no reference": {"use_ref_model": False},
    "means": {"average_log_prob": True, "bias": True},
    "nll": {"compute_nll_loss": True, "alpha": 0.7},
    "nll of means": {"compute_nll_loss": True, "average_log_prob": True},
    "beta": {"beta": 0.5, "chunk_size": 2},
}
NAMES = ("chosen_logps", "rejected_logps", "chosen_logits_mean", "rejected_logits_mean",
         "nll_loss", "chosen_rewards", "rejected_rewards")  # fmt: skip


def make(bias: bool = False) -> dict[str, Any]:
    torch.manual_seed(0)
    pairs, length, width, vocab = 4, 7, 12, 53
    found: dict[str, Any] = {
        "lin_weight": torch.randn(vocab, width) / 3,
        "_input": torch.randn(2 * pairs, length, width),
        "target": torch.randint(0, vocab, (2 * pairs, length)),
        "bias": torch.randn(vocab) if bias else None,
        "ref_input": torch.randn(2 * pairs, length, width),
        "ref_weight": torch.randn(vocab, width) / 3,
        "ref_bias": torch.randn(vocab) if bias else None,
    }
    found["target"][1, 3:] = found["target"][6, :2] = -100
    for name in ("lin_weight", "_input", "bias"):
        if found[name] is not None:
            found[name].requires_grad_()
    return found


def outcome(loss: Any, given: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and the seven beside it; gradients under an upstream factor."""
    wanted = [x for x in given.values() if x is not None and x.requires_grad]
    total, rest = loss(**given)
    return [total.detach(), *rest], list(torch.autograd.grad(3 * total, wanted))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("loss_type", FORMULAS)
def test_outputs_and_gradients_are_ligers(pattern: str, loss_type: str) -> None:
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    if loss_type == "ipo":
        pytest.skip("Liger refuses it; see below")
    options = {**PATTERNS[pattern], "loss_type": loss_type, "compiled": False}
    if loss_type in ("robust", "exo_pair"):
        options["label_smoothing"] = 0.1
    given = make(bool(options.pop("bias", False)))
    theirs, grads = outcome(liger.LigerFusedLinearDPOLoss(**options), given)
    ours, own = outcome(FusedLinearDPOLoss(**options), given)
    for name, a, b in zip(("loss", *NAMES), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(own, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


def by_full_logits(given: dict[str, Any], loss_type: str, means: bool) -> Tensor:
    def logp(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
        kept = given["target"] != -100
        picked = z.log_softmax(-1).gather(-1, given["target"].clamp(min=0)[..., None])[..., 0]
        sums = (picked * kept).sum(1)
        return sums / kept.sum(1) if means else sums

    own = logp(given["_input"], given["lin_weight"], given["bias"])
    with torch.no_grad():
        ref = logp(given["ref_input"], given["ref_weight"], given["ref_bias"])
    w, l = (own - ref).split(4)  # noqa: E741
    if loss_type == "ipo":
        return (w - l - 5).square().mean()
    return -torch.nn.functional.logsigmoid(0.1 * (w - l)).mean()


@pytest.mark.parametrize("loss_type", ["ipo", "sigmoid"])
def test_float16_gradients_have_the_scaler_s_factor_before_they_are_rounded(loss_type: str) -> None:
    """The fused pass refuses float16, so that these losses take the way of all the others."""
    given = make()
    half = {k: v.half() if v is not None and v.is_floating_point() else v for k, v in given.items()}
    same = {k: v.float() if v is not None and v.is_floating_point() else v for k, v in half.items()}
    factor, gradients = 2.0**24, []
    for arguments in (half, same):
        leaves = [arguments[name].detach().requires_grad_() for name in ("lin_weight", "_input")]
        arguments = {**arguments, "lin_weight": leaves[0], "_input": leaves[1]}
        total, _ = FusedLinearDPOLoss(loss_type=loss_type, beta=0.1)(**arguments)
        gradients.append(torch.autograd.grad(1e-7 * factor * total, leaves))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours.float() - expected).abs().max() <= 0.01 * expected.abs().max()


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("loss_type", ["ipo", "sigmoid"])
def test_ipo_by_the_plain_formula(loss_type: str, means: bool) -> None:
    given = make(bias=True)
    own = [given[n] for n in ("lin_weight", "_input", "bias")]
    loss, _ = FusedLinearDPOLoss(loss_type=loss_type, average_log_prob=means)(**given)
    plain = by_full_logits(given, loss_type, means)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(x, own) for x in (loss, plain)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
@pytest.mark.parametrize("means", [False, True])
def test_packed_and_cached_is_padded(loss_type: str, means: bool) -> None:
    given = make()
    loss = FusedLinearDPOLoss(loss_type=loss_type, average_log_prob=means, compute_nll_loss=True)
    total, (chosen, rejected, *_, wins, losses) = loss(**given)
    reference = torch.cat([chosen - wins / 0.1, rejected - losses / 0.1])
    keep = torch.ones(8, 7, dtype=torch.bool)
    keep[1, 3:] = keep[6, :2] = False
    lengths = keep.sum(1)
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    packed, (found, *_) = loss(
        given["lin_weight"],
        given["_input"][keep],
        given["target"][keep],
        cu_seqlens=cu,
        ref_logp=reference,
    )
    torch.testing.assert_close(packed, total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, chosen, rtol=1e-5, atol=1e-5)
    own = [given["lin_weight"], given["_input"]]
    torch.testing.assert_close(
        torch.autograd.grad(packed, own), torch.autograd.grad(total, own), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"loss_type": "kto"}, {}, r"loss_type: 'kto'; expected one of sigmoid, ipo, hinge"),
        ({"loss_type": "exo_pair"}, {}, r"label_smoothing: 0\.0; exo_pair needs one in \(0, 1\)"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, {}, r"robust needs one in \[0, 0\.5\)"),
        ({}, {"ref_input": None}, r"ref_input: missing; expected it with ref_weight, or ref_logp"),
        ({}, {"ref_logp": torch.zeros(8)}, r"ref_logp: .*no ref_input beside it"),
        ({}, {"ref_input": None, "ref_logp": torch.zeros(3)}, r"ref_logp: shape \(3,\); expected"),
        ({}, {"target": torch.zeros(8, 6).long()}, r"_input: shape \(8, 7, 12\) with target"),
        (
            {},
            {"_input": torch.zeros(3, 7, 12), "target": torch.zeros(3, 7).long()},
            r"_input: 3 sequences; expected the chosen ones, then as many rejected",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FusedLinearDPOLoss(**options)(**make() | change)
