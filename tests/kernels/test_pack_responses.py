"""pack_responses: what predicts the tokens that count, from padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_kernels import linear_logprob, pack_responses


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_the_log_probs_are_those_of_each_sequence(data: st.DataObject) -> None:
    """Any mask without first tokens, empty rows too; gradients reach what counts alone."""
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    bits = st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)
    mask = torch.tensor([[False, *data.draw(bits)] for _ in range(rows)])
    generator = torch.Generator().manual_seed(rows * 10 + length)
    hidden = torch.randn(rows, length, 3, generator=generator, dtype=torch.float64)
    hidden.requires_grad_()
    weight = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 11, (rows, length), generator=generator)
    states, target, cu = pack_responses(hidden, mask, ids)
    ours = linear_logprob(states, weight, target, cu_seqlens=cu)
    logs = (hidden @ weight.t()).log_softmax(-1)[:, :-1]
    each = logs.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    torch.testing.assert_close(ours, each.sum(1))
    for a, b in zip(*(torch.autograd.grad(x.sum(), hidden) for x in (ours, each)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": torch.zeros(2, 3)}, r"hidden: shape \(2, 3\); expected \(B, L, H\)"),
        ({"ids": torch.zeros(2, 4).long()}, r"ids: shape \(2, 4\); expected \(B, L\) = \(2, 3\)"),
        ({"mask": torch.zeros(2, 4)}, r"mask: shape \(2, 4\); expected \(B, L\) = \(2, 3\)"),
        ({"mask": torch.tensor([[0, 1, 1], [1, 0, 0]])}, r"mask: the first token of sequence 1"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    given_: dict[str, Any] = {
        "hidden": torch.zeros(2, 3, 4),
        "mask": torch.zeros(2, 3),
        "ids": torch.zeros(2, 3).long(),
    }
    with pytest.raises(ValueError, match=words):
        pack_responses(**given_ | change)
