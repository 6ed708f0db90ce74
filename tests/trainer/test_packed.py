"""Packed log-probs against the plain model, one response at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comal_fast.config.schema import ModelConfig
from comal_fast.model.load import load_model, load_tokenizer
from comal_fast.model.logps import response_logps
from comal_fast.model.packed import PromptResponse, pack, packed_attention, predictor_states
from tiny import tiny_model

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
}


def plain_logps(model: Any, sequences: list[PromptResponse]) -> np.ndarray:
    """Log-probs from the whole logits of one sequence after another."""
    result = []
    for s in sequences:
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        with torch.inference_mode():
            logp = model(ids).logits[0].double().log_softmax(-1)
        start = len(s.prompt_ids) - 1
        picked = logp[range(start, start + len(s.response_ids)), s.response_ids]
        result.append(picked.sum().item())
    return np.array(result)


def random_sequences(count: int, seed: int = 0) -> list[PromptResponse]:
    generator = np.random.default_rng(seed)
    return [
        PromptResponse(
            generator.integers(5, 261, generator.integers(1, 30)).tolist(),
            generator.integers(0, 261, generator.integers(1, 20)).tolist(),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_one_at_a_time(family: str) -> None:
    model = tiny_model(family, **FAMILIES[family])
    sequences = random_sequences(9)
    expected = plain_logps(model, sequences)
    for budget in (1, 60, 10_000):  # one a pass, a few, all in one row
        packed = response_logps(model, sequences, max_tokens=budget)
        np.testing.assert_allclose(packed, expected, atol=1e-4, rtol=1e-5)


def test_neighbours_do_not_leak() -> None:
    model = tiny_model()
    sequences = random_sequences(3)
    alone = response_logps(model, sequences[1:2], max_tokens=10_000)
    other = [random_sequences(3, seed=7)[0], sequences[1], random_sequences(3, seed=8)[2]]
    for neighbours in (sequences, other):
        assert response_logps(model, neighbours, max_tokens=10_000)[1] == pytest.approx(
            alone[0], abs=1e-5
        )


def test_gradients_equal_one_at_a_time() -> None:
    model = tiny_model()
    sequences = random_sequences(4)

    def gradient(groups: list[list[PromptResponse]]) -> torch.Tensor:
        model.zero_grad()
        with packed_attention(model, "auto"):
            for group in groups:
                predictor_states(model, pack(group, model.device)).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(
        gradient([sequences]), gradient([[s] for s in sequences]), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0}, "soft-capping"),
        ("mistral", {"sliding_window": 4}, "sliding window"),
    ],
)
def test_what_cannot_be_exact_is_refused(family: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        response_logps(tiny_model(family, **options), random_sequences(2), max_tokens=100)


def test_real_model_real_prompts(smollm2: ModelConfig, ultrafeedback: Path) -> None:
    """SmolLM2-135M, float32, uneven UltraFeedback prompts: at most 1e-4 a sequence."""
    tokenizer, model = load_tokenizer(smollm2), load_model(smollm2)
    lines = ultrafeedback.read_text(encoding="utf-8").splitlines()
    prompts = sorted((json.loads(line)["prompt"] for line in lines[:60]), key=len)[::8]
    sequences = []
    for number, prompt in enumerate(prompts):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        answer = " ".join(prompts[-1].split()[number * 3 : number * 7 + 2]) + "<|im_end|>"
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, answer)]
        sequences.append(PromptResponse(*ids))
    assert len({len(s) for s in sequences}) > 5
    packed = response_logps(model, sequences, max_tokens=4096)
    plain = plain_logps(model, sequences)
    assert np.abs(packed - plain).max() <= 1e-4
