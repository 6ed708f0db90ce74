"""Models that can't be trained as they are: refused before anything is sampled, or made to fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comal_fast.cli import main
from comal_fast.data.conversation import Message
from comal_fast.data.text import content_words, words
from comal_fast.oracles.base import Comparison
from comal_fast.oracles.criteria import CriteriaOracle
from tiny import byte_tokenizer, tiny_model


@pytest.fixture
def last(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The last line that a command writes to stderr, when it ends with the status 2."""

    def call(*given: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in given]) == 2
        return str(capsys.readouterr().err.splitlines()[-1])

    return call


def sampled(config: Path) -> bool:
    return (config.parent / "run" / "iterations").exists()


@pytest.mark.parametrize("more", [(), ("model.lora={}",)])
def test_an_adapter_for_a_model(
    tiny_run: Path, tmp_path: Path, last: Callable[..., str], more: tuple[str, ...]
) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    said = last("run", tiny_run, f"model.name_or_path={tmp_path / 'adapter'}", *more)
    assert "model.name_or_path" in said and "it holds an adapter, not a model" in said
    assert not sampled(tiny_run)


def test_a_token_without_a_row(tiny_run: Path, tmp_path: Path, last: Callable[..., str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.chat_template = "<|new|>" + tokenizer.chat_template
    for each in (tiny_model(), tokenizer):
        each.save_pretrained(tmp_path / "larger")
    said = last("run", tiny_run, f"model.name_or_path={tmp_path / 'larger'}")
    assert "'<|new|>' as token 261, and the model 261 rows" in said and not sampled(tiny_run)


def test_more_tokens_than_positions(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path, last: Callable[..., str]
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "short")
    file = tmp_path / "short" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 40}))
    said = last("run", tiny_run, f"model.name_or_path={tmp_path / 'short'}")
    assert "the model has positions for 40" in said and not sampled(tiny_run)


def test_an_attention_that_is_told_nothing(
    tiny_run: Path, tmp_path: Path, last: Callable[..., str]
) -> None:
    for each in (tiny_model("nemotron"), byte_tokenizer()):
        each.save_pretrained(tmp_path / "nemotron")
    said = last("run", tiny_run, f"model.name_or_path={tmp_path / 'nemotron'}")
    assert "packed attention can't do" in said and "NemotronForCausalLM" in said


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_dropout": 0.4}),
        ("phi", {"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attention_dropout": 0.4}),
        ("gpt2", {"resid_pdrop": 0.4, "attn_pdrop": 0.4, "embd_pdrop": 0.4}),
    ],
)
def test_a_models_own_dropout_is_off(
    tiny_run: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """The policy starts as its reference: the first margin is 0."""
    for each in (tiny_model(family, **options), byte_tokenizer()):
        each.save_pretrained(tmp_path / "dropping")
    given = [f"model.name_or_path={tmp_path / 'dropping'}", "algorithm.iterations=1"]
    assert main(["run", str(tiny_run), *given]) == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    first = next(row for row in rows if row["phase"] == "train")
    assert abs(first["rewards/margins"]) < 1e-3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("training.learning_rate=1e-7",), True),
        (("training.learning_rate=1e-7", "training.stochastic_rounding=true"), False),
        (("training.learning_rate=1e-1",), False),
    ],
)
def test_updates_that_round_to_nothing(
    tiny_run: Path, capsys: pytest.CaptureFixture, given: tuple[str, ...], said: bool
) -> None:
    more = ["model.dtype=bfloat16", "algorithm.iterations=1", "diagnostics.divergence=rollback"]
    if "true" in given[-1]:
        more.append("training.optimizer_state=float32")
    assert main(["run", str(tiny_run), *more, *given]) in (0, 3)
    assert ("rounds to nothing" in capsys.readouterr().out) == said


def test_a_base_that_changed(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path, last: Callable[..., str]
) -> None:
    pytest.importorskip("peft")
    shutil.copytree(tiny_folder, tmp_path / "base")
    given = [f"model.name_or_path={tmp_path / 'base'}", "model.lora={}", "algorithm.iterations=1"]
    assert main(["run", str(tiny_run), *given]) == 0
    model = tiny_model()
    model.lm_head.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "base")
    said = last("merge", tmp_path / "run", tmp_path / "merged")
    assert "trained on other weights" in said and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "x" * 300])
def test_output_dir_where_nothing_can_be(
    tiny_run: Path, tmp_path: Path, last: Callable[..., str], place: str
) -> None:
    (tmp_path / "file").write_text("")
    assert "output_dir" in last("run", tiny_run, f"output_dir={tmp_path / place}")


def test_plan_reads_a_folder_of_a_known_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("llama-3-8b")
    pages = []
    for name in ("llama-3-8b", "./llama-3-8b"):
        assert main(["plan", "--model", name, "--gpu-memory", "80GiB"]) == 0
        pages.append(capsys.readouterr().out.replace("./", ""))
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("ended", "as_well"),
    [("好。", "好！"), ("好。", "好？"), ("ठीक।", "ठीक."), ("نعم؟", "نعم?"), ("Այո։", "Այո.")],
)
def test_ends_of_sentences(ended: str, as_well: str) -> None:
    two = [ended, as_well]
    (matrix,) = CriteriaOracle().compare([Comparison((Message("user", "?"),), two, two)])
    np.testing.assert_allclose(matrix, 0.5, atol=1e-6)


def test_words_of_scripts_without_blanks() -> None:
    assert words("因为光的散射。") == list("因为光的散射")
    assert words("प्रकाश के") == ["प्रकाश", "के"] and words("It's 3.5 cafés") == [
        "it's",
        "3.5",
        "cafés",
    ]
    assert content_words("光 a I") == {"光"}
    long, brief = "光的散射、" * 200 + "。", "因为光的散射。"
    oracle = CriteriaOracle(weights={"brief": 1.0})
    (matrix,) = oracle.compare([Comparison((Message("user", "?"),), [brief], [long])])
    assert matrix[0, 0] > 0.6
