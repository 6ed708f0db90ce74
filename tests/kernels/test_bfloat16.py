"""bfloat16, the dtype of training, on many shapes: odd ones, with descriptors and without."""

from __future__ import annotations

import itertools

import pytest
import torch

from comal_kernels import linear_logprob
from comal_kernels.engines.triton import tuning
from comal_kernels.linear_logprob.reference import reference_logprob

WIDTHS = [7, 24, 32, 64, 80, 136]  # odd; multiples of 8, 16 and 64
VOCABS = [3, 65, 129, 256, 320]
HEADS = {
    "plain": {},
    "bias": {"bias": 1},
    "cap": {"softcap": 3.0},
    "unlikely": {"logit_scale": 30.0},  # p(target) down to e⁻²⁰⁰ and below
}
SHAPES = [
    (5 + 9 * i % 40, width, vocab, list(HEADS)[i % len(HEADS)])
    for i, (width, vocab) in enumerate(itertools.product(WIDTHS, VOCABS))
]


@pytest.mark.parametrize("descriptors", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_plain_torch(shape, descriptors, device, monkeypatch, assert_as_good) -> None:
    """Twice the error of plain bfloat16 with float32 logits at most, both against float64."""
    n, width, vocab, name = shape
    if not descriptors:
        for tables in (tuning.SOFTEN, tuning.FORWARD):
            monkeypatch.setitem(tables, 90, tables[80])
    options = dict(HEADS[name])
    torch.manual_seed(n * width + vocab)
    leaves = [torch.randn(n, width), torch.randn(vocab, width) / width**0.5 * 2]
    if options.pop("bias", 0):
        leaves.append(torch.randn(vocab))
    leaves = [x.to(device, torch.bfloat16).requires_grad_() for x in leaves]
    target = torch.randint(0, vocab, (n,))
    upstream = torch.linspace(-1, 2, n, device=device)
    results = []
    for kind in ("ours", "plain", "exact"):
        mine = [x.detach().double().requires_grad_() for x in leaves] if kind == "exact" else leaves
        more = {"bias": mine[2]} if len(mine) == 3 else {}
        if kind == "ours":
            workspace = 16 * vocab * 4
            logp = linear_logprob(
                *mine[:2], target, backend="triton", workspace=workspace, **more, **options
            )
        else:
            dtype = torch.float32 if kind == "plain" else torch.float64
            there = target.to(device)
            logp = reference_logprob(*mine[:2], there, dtype=dtype, **more, **options)
        results.append([logp.detach(), *torch.autograd.grad(logp @ upstream.to(logp.dtype), mine)])
    assert_as_good(*results)


def test_every_kind_of_shape_is_there() -> None:
    assert len(SHAPES) >= 30
    assert {name for *_, name in SHAPES} == HEADS.keys()
