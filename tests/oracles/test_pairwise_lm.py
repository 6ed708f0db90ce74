"""A language model asked which of two is better: packed against alone, labels, templates."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from comal_fast.config import load_config
from comal_fast.config.oracle import PairwiseLmConfig
from comal_fast.errors import InputError
from comal_fast.oracles import Comparison, Message, Messages, make_oracle, self_comparison
from comal_fast.oracles.template import load_template
from tiny import byte_tokenizer, tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 7, "final_logit_softcapping": 5.0},
    "mistral": {"sliding_window": 300},
    "bloom": {},  # can't be packed: padded
}
MESSAGES: Messages = (Message("user", "What is {response_b}?"),)
TEXTS = ["Four.", "Four", "Five, {prompt} I was told."]


def save_judge(folder: Path, family: str = "llama", **given: Any) -> Path:
    tiny_model(family, **{"max_position_embeddings": 4096, **given}).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def options(folder: Path, **given: Any) -> PairwiseLmConfig:
    return PairwiseLmConfig(**{"model": str(folder), "dtype": "float32", "device": "cpu", **given})


def plain(folder: Path, text: str, answer: str, labels: tuple[str, str]) -> float:
    """P(first) by transformers, of one question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(asked + answer, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    tokens = [tokenizer.convert_tokens_to_ids(label) for label in labels]
    return float(softmax(logits[tokens].double().numpy())[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", ["plain", "offsetbias"])
def test_packed_is_one_at_a_time(family: str, template: str, tmp_path: Path) -> None:
    folder = save_judge(tmp_path, family, **FAMILIES[family])
    form = load_template(template, None, None, None)
    assert form.labels == (("A", "B") if template == "plain" else ("a", "b"))
    oracle = make_oracle(options(folder, template=template, max_tokens_per_batch=5000))
    (matrix,) = oracle.compare([self_comparison(MESSAGES, TEXTS)])
    first = {
        (a, b): plain(folder, form.fill(MESSAGES, a, b), form.answer, form.labels)
        for a, b in itertools.permutations(TEXTS, 2)
    }
    for (i, a), (j, b) in itertools.permutations(enumerate(TEXTS), 2):
        wanted = (first[a, b] + 1 - first[b, a]) / 2
        assert matrix[i, j] == pytest.approx(wanted, abs=1e-5)
    assert (matrix.diagonal() == 0.5).all()
    assert len({round(p, 6) for p in first.values()}) == 6
    assert oracle.counts()["oracle/asked"] == 6


def test_two_sides_and_same_texts(tmp_path: Path) -> None:
    """A text on both sides draws; each pair is asked once in each order."""
    oracle = make_oracle(options(save_judge(tmp_path)))
    (matrix,) = oracle.compare([Comparison(MESSAGES, ["x", "y", "x"], ["y", "z"])])
    assert matrix[1, 0] == 0.5
    np.testing.assert_array_equal(matrix[0], matrix[2])
    assert oracle.counts()["oracle/asked"] == 6  # xy yx, xz zx, yz zy


def test_own_template(tmp_path: Path) -> None:
    folder, file = save_judge(tmp_path / "m"), tmp_path / "mine.txt"
    file.write_text("{criteria}\n{conversation}\n1: {response_a}\n2: {response_b}\nBetter: {x}\n")

    def made(**given: Any) -> Any:
        return make_oracle(options(folder, template=str(file), **given))

    with pytest.raises(InputError, match=r"no such place \{x\}; there is \{conversation\}"):
        made()
    file.write_text("{criteria}\n{conversation}\n1: {response_a}\n2: {response_b}\n{{}} Better?\n")
    with pytest.raises(InputError, match=r"asks for \{criteria\}; give them as oracle.criteria"):
        made()
    oracle = made(criteria="Be {brief}.", labels=["1", "2"], answer="It is ")
    messages = (
        Message("system", "Hm."),
        Message("user", "Why?"),
        Message("assistant", "So."),
        Message("user", "How?"),
    )
    form = load_template(str(file), ["1", "2"], "It is ", "Be {brief}.")
    assert form.fill(messages, "a", "b") == (
        "Be {brief}.\nSystem: Hm.\n\nUser: Why?\n\nAssistant: So.\n\nUser: How?\n"
        "1: a\n2: b\n{{}} Better?"
    )
    (matrix,) = oracle.compare([Comparison(messages, ["a"], ["b"])])
    ab, ba = (
        plain(folder, form.fill(messages, *two), "It is ", ("1", "2")) for two in ("ab", "ba")
    )
    assert matrix[0, 0] == pytest.approx((ab + 1 - ba) / 2, abs=1e-5)
    before = oracle.fingerprint()
    file.write_text(file.read_text().replace("Better", "Worse"))
    assert made(criteria="Be {brief}.", labels=["1", "2"]).fingerprint() != before


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        ("{conversation} {response_a}", {}, r"\{response_b\} is not in it"),
        ("{response_a} {response_b}", {}, r"\{conversation\} is not in it"),
        ("{prompt} {response_a} {response_b}", {"criteria": "x"}, r"has no \{criteria\}"),
        ("{prompt} {response_a} {response_b}", {"labels": ["A", "A"]}, "'A' and 'A'; give two"),
        ("{prompt} {response_a} {response_b}", {"labels": ["Yes", "No"]}, "'Yes' is not one token"),
        ("{prompt} {response_a} {response_b}", {"labels": ["A", "é"]}, "'é' is not one token"),
    ],
)
def test_bad_templates_and_labels(
    text: str, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        make_oracle(options(save_judge(tmp_path), template=str(tmp_path / "t.txt"), **given))
    assert "\n" not in str(caught.value)


def test_no_template_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="oracle.template .*none.txt: can't be read"):
        make_oracle(options(save_judge(tmp_path), template=f"{tmp_path}/none.txt"))
    file = tmp_path / "c.yaml"
    file.write_text(f"oracle: {{name: pairwise_lm, model: {tmp_path}, labels: [A]}}")
    with pytest.raises(InputError, match="oracle.labels"):
        load_config(file)


def test_not_finite(tmp_path: Path) -> None:
    folder = save_judge(tmp_path)
    model = tiny_model(max_position_embeddings=4096)
    model.lm_head.weight.data[byte_tokenizer().convert_tokens_to_ids("A")] = torch.inf
    model.save_pretrained(folder)
    with pytest.raises(InputError, match="not finite|logits of its labels"):
        list(make_oracle(options(folder)).compare([self_comparison(MESSAGES, TEXTS)]))


@pytest.mark.slow
@pytest.mark.nightly
def test_smollm2_judges_real_prompts(smollm2: Any) -> None:
    """The whole answer to a question against a word of another subject."""
    given = {"gguf_file": smollm2.gguf_file, "dtype": "float32", "device": "cpu"}
    oracle = make_oracle(PairwiseLmConfig(model=smollm2.name_or_path, **given))
    asked = {
        "What is the capital of France?": "The capital of France is Paris.",
        "How many days has a week?": "A week has seven days.",
        "Name a fruit that is yellow.": "A banana is a yellow fruit.",
        "What do bees make?": "Bees make honey.",
    }
    answers = list(asked.values())
    items = [
        Comparison((Message("user", question),), [answer], [answers[i - 1], answers[i - 2]])
        for i, (question, answer) in enumerate(asked.items())
    ]
    wins = np.concatenate([matrix.ravel() for matrix in oracle.compare(items)])
    assert ((wins > 0) & (wins < 1)).all() and wins.mean() > 0.5
