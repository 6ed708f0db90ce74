"""Packed passes that share prompts against the plain model, one response at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex

from comal_fast.config.schema import ModelConfig
from comal_fast.model.load import load_model, load_tokenizer
from comal_fast.model.logps import passed_tokens, response_logps
from comal_fast.model.packed import packed_attention
from comal_fast.training.batches import micro_batches
from comal_kernels.attention.flex import flex
from comal_kernels.attention.varlen import varlen
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.integrations.transformers.attention import register
from comal_kernels.packing import PromptResponse, pack
from plain import (
    gradients,
    packed_logps,
    plain_gradients,
    plain_kernel,
    plain_logp,
    plain_logps,
    relative_error,
)
from tiny import tiny_model

# windows narrower than the sequences, caps that bite
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 7,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {}),
    "phi3, window": ("phi3", {"sliding_window": 7}),
    "granite": ("granite", {"logits_scaling": 3.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
}


REFERENCE = "comal_reference"
register(REFERENCE, varlen(plain_kernel))


def family_model(name: str) -> Any:
    family, options = FAMILIES[name]
    return tiny_model(family, **options)


def random_sequences(
    prompts: int = 4, responses: int = 3, seed: int = 0, longest: int = 20
) -> list[PromptResponse]:
    """Up to `responses` a prompt, mixed; a prompt of one token, a response of one among them."""
    g = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return g.integers(5, 261, length).tolist()

    sequences = []
    for number in range(prompts):
        prompt = ids(1 if number == 1 else g.integers(2, longest))
        sequences += [PromptResponse(prompt, ids(g.integers(2, longest))) for _ in range(responses)]
    sequences[-1] = PromptResponse(sequences[-1].prompt_ids, ids(1))
    return [sequences[i] for i in g.permutation(len(sequences))]


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_one_at_a_time(name: str) -> None:
    """Log-probs at any budget, and the gradients of all parameters."""
    model = family_model(name)
    sequences = random_sequences()
    expected = plain_logps(model, sequences).numpy()
    for budget in (1, 60, 10_000):  # one a pass, a few, all in one row
        packed = response_logps(model, sequences, max_tokens=budget)
        np.testing.assert_allclose(packed, expected, rtol=1e-5)

    weights = torch.linspace(-1, 1, len(sequences))
    wanted = plain_gradients(model, sequences, weights)

    def backward() -> None:
        (weights * packed_logps(model, sequences)).sum().backward()

    with packed_attention(model.train(), "auto"):
        found = gradients(model, backward)
        assert relative_error(found, wanted) <= 1e-5
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(model, backward)
    for parameter, gradient in found.items():
        assert torch.equal(again[parameter], gradient), parameter

    model.gradient_checkpointing_disable()
    model.set_attn_implementation(REFERENCE)  # keys gathered as flash-attn and torch need them
    assert relative_error(gradients(model, backward), wanted) <= 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_flex_attention_in_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled; torch refuses gradients on a CPU though that form has them."""
    torch.compiler.reset()  # else another scale than before is symbolic, and fails
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    register("comal_uncompiled", flex(torch_flex.flex_attention))
    model, sequences = family_model(name), random_sequences()
    weights = torch.linspace(-1, 1, len(sequences))
    wanted = plain_gradients(model, sequences, weights)
    model.set_attn_implementation("comal_uncompiled")
    found = gradients(model, lambda: (weights * packed_logps(model, sequences)).sum().backward())
    assert relative_error(found, wanted) <= 1e-5


LENGTHS = st.integers(1, 8)
GROUPS = st.lists(
    st.tuples(LENGTHS, st.lists(LENGTHS, min_size=1, max_size=4)), min_size=1, max_size=4
)


def drawn_sequences(groups: list[tuple[int, list[int]]], draw: Callable) -> list[PromptResponse]:
    """Few distinct tokens, so that prompts coincide or begin alike."""
    ids = st.integers(5, 6)

    def some(length: int) -> list[int]:
        return draw(st.lists(ids, min_size=length, max_size=length))

    prompts = [(some(p), sizes) for p, sizes in groups]
    return [PromptResponse(prompt, some(size)) for prompt, sizes in prompts for size in sizes]


@cache
def llama() -> Any:
    return tiny_model()


@settings(max_examples=40, deadline=None)
@given(st.data(), GROUPS, st.integers(1, 80))
def test_any_lengths_groups_pairings_and_budgets(
    data: st.DataObject, groups: list[tuple[int, list[int]]], budget: int
) -> None:
    """Σ (log-prob of one − ⅔ log-prob of the other − 300)² over pairs: that over packed passes.

    A response may be drawn against itself: ⅔, so that it does not cancel. No residual is near 0,
    where its gradient would be rounding alone: no log-prob is that far from 0.
    """
    model = llama()
    sequences = drawn_sequences(groups, data.draw)
    numbers = st.integers(0, len(sequences) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6))
    chosen, rejected = (list(side) for side in zip(*pairs, strict=True))
    expected = plain_logps(model, sequences).numpy()
    found = response_logps(model, sequences, max_tokens=budget)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    def plain() -> None:
        logps = torch.stack([plain_logp(model, s) for s in sequences])
        ((logps[chosen] - logps[rejected] * 2 / 3 - 300) ** 2).sum().backward()

    def packed() -> None:
        batch = [[i] for i in range(len(pairs))]
        for part in micro_batches(batch, chosen, rejected, dict(enumerate(sequences)), budget):
            logps = packed_logps(model, [sequences[row] for row in part.rows])
            ((logps[part.chosen] - logps[part.rejected] * 2 / 3 - 300) ** 2).sum().backward()

    wanted = gradients(model, plain)
    with packed_attention(model, "auto"):
        got = gradients(model, packed)
    scale = max(float(w.norm()) for w in wanted.values())
    for name, gradient in wanted.items():  # a parameter may have next to none
        error = float((got[name] - gradient).norm())
        assert error <= 1e-5 * float(gradient.norm()) + 1e-6 * scale, name


def test_one_packing_serves_passes_with_and_without_gradients() -> None:
    model, sequences = tiny_model(), random_sequences()
    for implementation in ("comal_segments", REFERENCE):
        model.set_attn_implementation(implementation)
        packed = pack(sequences, model.device)
        with torch.inference_mode():
            before = predictor_states(model, packed)
        after = predictor_states(model, packed)
        after.sum().backward()
        assert torch.equal(before, after.detach())


def test_a_model_without_sdpa_is_loaded(tmp_path: Path) -> None:
    """Gemma 2: transformers' own attention is eager."""
    model = family_model("gemma2")
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(name_or_path=str(tmp_path), device="cpu"))
    sequences = random_sequences(2)
    found = response_logps(loaded, sequences, max_tokens=100)
    np.testing.assert_allclose(found, plain_logps(model, sequences).numpy(), rtol=1e-5)


def test_neighbours_do_not_leak() -> None:
    """Neither strangers nor responses to the same prompt."""
    model = tiny_model()
    sequences = random_sequences(3, 1)
    alone = response_logps(model, sequences[1:2], max_tokens=10_000)
    sibling = PromptResponse(sequences[1].prompt_ids, [7, 8, 9])
    other = [random_sequences(3, 1, seed=7)[0], sequences[1], random_sequences(3, 1, seed=8)[2]]
    for neighbours in (sequences, other, [sibling, sequences[1], sibling]):
        assert response_logps(model, neighbours, max_tokens=10_000)[1] == pytest.approx(
            alone[0], rel=1e-6
        )


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "attention sinks"),
        ("falcon_h1", {"num_key_value_heads": 4}, "layers of the kind"),
        ("qwen3_next", {"num_experts": 0, "mlp_only_layers": [0, 1]}, "linear_attention"),
        ("bloom", {}, "an attention of the model's own"),
        (
            "phi3",
            {
                "max_position_embeddings": 64,
                "original_max_position_embeddings": 16,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                },
            },
            "longrope positions beyond 16 tokens",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(family: str, options: dict, words: str) -> None:
    model = tiny_model(family, **options)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=words):
        response_logps(model, random_sequences(2), max_tokens=100)
    assert model.config._attn_implementation == before


def real_sequences(tokenizer: Any, prompts: list[str], responses: int) -> list[PromptResponse]:
    """Chat prompts with pieces of text as responses."""
    sequences = []
    words = max(prompts, key=len).split()
    for number, prompt in enumerate(prompts):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for k in range(responses):
            start = number * 3 + 5 * k
            answer = " ".join(words[start : start + 4 + number * 4 + k]) + "<|im_end|>"
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, answer)]
            sequences.append(PromptResponse(*ids))
    return sequences


@pytest.mark.slow
@pytest.mark.nightly
def test_real_model_real_prompts(smollm2: ModelConfig, ultrafeedback: Path) -> None:
    """SmolLM2-135M, float32: at most 1e-4 a sequence, a prompt's tokens computed once."""
    tokenizer, model = load_tokenizer(smollm2), load_model(smollm2)
    lines = ultrafeedback.read_text(encoding="utf-8").splitlines()
    prompts = sorted((json.loads(line)["prompt"] for line in lines[:60]), key=len)[5:50:20]
    sequences = real_sequences(tokenizer, prompts, responses=3)
    assert len({len(s) for s in sequences}) > 5
    seen: list[int] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    packed = response_logps(model, sequences, max_tokens=4096)
    hook.remove()
    once = sum(len(ids) for ids in {tuple(s.prompt_ids) for s in sequences})
    responses = sum(len(s.response_ids) - 1 for s in sequences)  # the last one predicts nothing
    assert sum(seen) == once + responses == passed_tokens(sequences, 4096)
    assert pack(sequences, model.device).tokens == once + responses
    plain = plain_logps(model, sequences).numpy()
    assert np.abs(packed - plain).max() <= 1e-4
