"""General preference models: vectors and a skew-symmetric score, against the formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from comal_fast.config.oracle import GeneralPreferenceConfig
from comal_fast.errors import InputError
from comal_fast.game.nash import has_strict_cycle
from comal_fast.oracles import Message, Messages, make_oracle, self_comparison
from comal_fast.oracles.general_preference import general_preference
from rewards import ASKED, FAMILIES
from tiny import byte_tokenizer, tiny_model


def save_gpm(folder: Path, family: str = "llama", width: int = 6, prompt: bool = True, **o: Any):
    """A folder as the published ones are: a causal model's weights, with the heads among them."""
    model = tiny_model(family, **o)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    weights = load_file(file)
    weights["value_head.weight"] = torch.randn(width, 32, generator=generator)
    if prompt:
        weights["prompt_head.weight"] = torch.randn(width // 2, 32, generator=generator)
    save_file(weights, file, {"format": "pt"})
    return folder


def options(folder: Path, **given: Any) -> GeneralPreferenceConfig:
    return GeneralPreferenceConfig(
        **{"model": str(folder), "dtype": "float32", "device": "cpu", **given}
    )


def plain(folder: Path, messages: Messages, texts: list[str], normalize: bool = True) -> np.ndarray:
    """The score of all pairs by transformers, one conversation at a time, R written out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    weights = load_file(folder / "model.safetensors")
    turns = [m.to_dict() for m in messages]

    def states(said: list[dict[str, str]], last: int | None = None) -> torch.Tensor:
        ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
        if last is not None:
            ids[-1] = last
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return out.hidden_states[-1][0, -1]

    end = tokenizer.eos_token_id
    answers = [states([*turns, {"role": "assistant", "content": t}], end) for t in texts]
    vectors = torch.stack(answers) @ weights["value_head.weight"].T
    if normalize:
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
    scales = torch.ones(vectors.shape[1] // 2)
    if "prompt_head.weight" in weights:
        scales = (weights["prompt_head.weight"] @ states(turns)).softmax(0)
    turn = torch.zeros(vectors.shape[1], vectors.shape[1])
    for k, scale in enumerate(scales):
        turn[2 * k, 2 * k + 1], turn[2 * k + 1, 2 * k] = -scale, scale
    score: np.ndarray = (vectors @ turn.T @ vectors.T).numpy()
    return score


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 150, 16384])
def test_packed_is_one_at_a_time(family: str, tokens: int, tmp_path: Path) -> None:
    folder = save_gpm(tmp_path / "model", family, **FAMILIES[family])
    oracle = make_oracle(options(folder, max_tokens_per_batch=tokens))
    matrices = oracle.compare(self_comparison(*item) for item in ASKED)
    for (messages, texts), matrix in zip(ASKED, matrices, strict=True):
        score = np.log(matrix / (1 - matrix)) * 0.1
        np.testing.assert_allclose(score, plain(folder, messages, texts), atol=1e-5)
        assert (matrix.diagonal() == 0.5).all()


@pytest.mark.parametrize("given", [{"width": 2, "prompt": False}, {"width": 8, "prompt": False}])
def test_without_a_prompt_head(given: dict[str, Any], tmp_path: Path) -> None:
    folder = save_gpm(tmp_path, **given)
    messages, texts = ASKED[0]
    for normalize in (True, False):
        oracle = make_oracle(options(folder, normalize=normalize, temperature=50.0))
        (matrix,) = oracle.compare([self_comparison(messages, texts)])
        wanted = plain(folder, messages, texts, normalize) / 50
        np.testing.assert_allclose(np.log(matrix / (1 - matrix)), wanted, atol=1e-4)


vectors = arrays(np.float64, (5, 6), elements=st.floats(-3, 3))


@settings(max_examples=200, deadline=None)
@given(vectors, st.floats(0.01, 10))
def test_skew_symmetric(rows: np.ndarray, temperature: float) -> None:
    rows[:, 4:] = np.abs(rows[0, 4:])  # λ of one prompt
    matrix = general_preference(rows, rows, temperature)
    np.testing.assert_allclose(matrix + matrix.T, 1, atol=1e-12)
    np.testing.assert_array_equal(matrix.diagonal(), 0.5)
    np.testing.assert_allclose(
        general_preference(rows[:2], rows[2:], temperature), matrix[:2, 2:], atol=1e-12
    )


def test_width_two_makes_cycles(tmp_path: Path) -> None:
    """Three vectors around a circle beat each other in turn; a real model's do on some prompt."""
    angles = 2 * np.pi * np.arange(3) / 3
    rows = np.stack([np.cos(angles), np.sin(angles), np.ones(3)], 1)
    assert has_strict_cycle(general_preference(rows, rows, 0.1))
    oracle = make_oracle(options(save_gpm(tmp_path, width=2, prompt=False)))
    items = [
        self_comparison((Message("user", f"{i}"),), [f"{chr(97 + j)}{i * j}" * j for j in range(6)])
        for i in range(30)
    ]
    assert any(has_strict_cycle(matrix) for matrix in oracle.compare(items))


def test_what_is_no_gpm(tiny_folder: Path, tmp_path: Path) -> None:
    def say(folder: Path, **given: Any) -> str:
        with pytest.raises(InputError) as caught:
            list(make_oracle(options(folder, **given)).compare([self_comparison(*ASKED[0])]))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no weights value_head.weight in it" in say(tiny_folder)
    assert "odd width 5" in say(save_gpm(tmp_path / "odd", width=5, prompt=False))
    good = save_gpm(tmp_path / "good")
    assert "oracle.max_length: 9 is less" in say(good, max_length=9)
    weights = load_file(good / "model.safetensors")
    weights["prompt_head.weight"] = weights["prompt_head.weight"][:2].clone()
    save_file(weights, good / "model.safetensors", {"format": "pt"})
    assert "prompt_head.weight has width 2, half of value_head.weight's would be 3" in say(good)
    weights["value_head.weight"].fill_(torch.nan)
    del weights["prompt_head.weight"]
    save_file(weights, good / "model.safetensors", {"format": "pt"})
    assert "vector is not finite for the prompt 'What is two" in say(good)


def test_a_template_that_changes_its_mind(tmp_path: Path) -> None:
    folder = save_gpm(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages|length }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="writes the messages before a response otherwise"):
        list(make_oracle(options(folder)).compare([self_comparison(*ASKED[0])]))


def test_shards(tmp_path: Path) -> None:
    """Heads in any of several files, as large models are stored."""
    folder = save_gpm(tmp_path / "one")
    (wanted,) = make_oracle(options(folder)).compare([self_comparison(*ASKED[0])])
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({n: weights[n] for n in some}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    where = {name: file for file, some in parts.items() for name in some}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (matrix,) = make_oracle(options(folder)).compare([self_comparison(*ASKED[0])])
    np.testing.assert_array_equal(matrix, wanted)
