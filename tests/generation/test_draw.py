"""Drawing follows the distribution, to its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.generation.draw import BLOCK, NOT_A_TOKEN, draw, scan_by_doubling, uniforms


def frequencies(logits: torch.Tensor, count: int, **options: float) -> torch.Tensor:
    drawn = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = draw(logits.repeat(count, 1), drawn, **options)
    return torch.bincount(tokens, minlength=len(logits)) / count


def within(seen: torch.Tensor, wanted: torch.Tensor, count: int) -> bool:
    """Five standard deviations of a frequency; what has probability 0 is never drawn."""
    assert not seen[wanted == 0].any()
    return bool(((seen - wanted).abs() <= 5 * (wanted * (1 - wanted) / count).sqrt()).all())


def test_frequencies() -> None:
    logits = torch.tensor([0.0, -torch.inf, 2.0, 1.0, -3.0, -torch.inf])
    count = 20000
    assert within(frequencies(logits, count), logits.softmax(-1), count)
    assert within(frequencies(logits, count, temperature=0.5), (logits / 0.5).softmax(-1), count)


def test_nucleus() -> None:
    """As transformers cuts it."""
    from transformers import TopPLogitsWarper

    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    for top_p in (0.05, 0.5, 0.93):
        wanted = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None])[0].softmax(-1)
        assert within(frequencies(logits, 20000, top_p=top_p), wanted, 20000)


@pytest.mark.parametrize("vocab", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_inverse_of_the_distribution_function(vocab: int) -> None:
    """The token whose stretch of [0, 1) holds the number, by float64 arithmetic."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(200, vocab, generator=generator) * 4
    drawn = torch.rand(200, dtype=torch.float64, generator=generator)
    upto = logits.double().softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(upto, drawn[:, None], right=True)[:, 0].clamp(max=vocab - 1)
    tokens = draw(logits, drawn)
    below = upto.gather(1, tokens[:, None])[:, 0]  # float32 may round to a neighbour at an edge
    off = (tokens != wanted) & ((below - drawn).abs() > 1e-6)
    assert not off.any() and (tokens != wanted).sum() <= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 * BLOCK), st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_a_word_without_a_share_is_never_drawn(only: int, drawn: float) -> None:
    logits = torch.full((1, 2 * BLOCK + 1), -torch.inf)
    logits[0, only] = -80.0
    assert draw(logits, torch.tensor([drawn], dtype=torch.float64)).item() == only


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_what_is_no_distribution(top_p: float) -> None:
    fine = torch.zeros(BLOCK + 3)
    nan, infinite = fine.clone(), fine.clone()
    nan[7], infinite[BLOCK + 1] = torch.nan, torch.inf
    logits = torch.stack([nan, fine, infinite, torch.full_like(fine, -torch.inf)])
    tokens = draw(logits, torch.full((4,), 0.3, dtype=torch.float64), top_p=top_p)
    assert (tokens == NOT_A_TOKEN).tolist() == [True, False, True, True]


def test_numbers_depend_on_seed_prompt_and_sample() -> None:
    first = uniforms("a", [1, 2], 0, 5)
    assert torch.equal(first, uniforms("a", [1, 2], 0, 9)[:5])
    others = [uniforms("b", [1, 2], 0, 5), uniforms("a", [12], 0, 5), uniforms("a", [1, 2], 1, 5)]
    assert all(not torch.equal(first, other) for other in others)
    assert ((first >= 0) & (first < 1)).all() and first.dtype == torch.float64


@pytest.mark.parametrize("size", [1, 2, 3, 64, 513])
def test_running_sums_by_doubling(size: int) -> None:
    """As deterministic mode has them on CUDA: as `cumsum`, and never falling."""
    x = torch.rand(5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(scan_by_doubling(x), x.cumsum(1), rtol=1e-14, atol=0.0)
    assert (scan_by_doubling(x.float().double()).diff(dim=1) >= 0).all()
