"""Prompt files in every format, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comal_fast.config.schema import DataConfig
from comal_fast.data.conversation import Message
from comal_fast.data.prompts import iteration_slice, load_prompts, split_prompts
from comal_fast.data.tokenize import tokenize_prompts
from comal_fast.errors import InputError
from tiny import byte_tokenizer

USER = [{"role": "user", "content": "Hi there"}]
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"


def load(path: Path, **options: Any) -> list:
    return load_prompts(DataConfig(prompts=str(path), **options))


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "p.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi there"}, (Message("user", "Hi there"),)),
        ({"prompt": USER}, (Message("user", "Hi there"),)),
        ({"prompt": USER, "chosen": "a", "rejected": "b"}, (Message("user", "Hi there"),)),
        (
            {
                "chosen": [*USER, {"role": "assistant", "content": "a"}],
                "rejected": [*USER, {"role": "assistant", "content": "b"}],
            },
            (Message("user", "Hi there"),),
        ),
        (
            {"chosen": HH + " This.", "rejected": HH + " That."},
            (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")),
        ),
    ],
)
def test_formats(tmp_path: Path, row: dict, messages: tuple) -> None:
    (prompt,) = load(write(tmp_path, row))
    assert prompt.messages == messages


def test_parquet_and_jsonl_agree(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?"} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    texts = [[p.text for p in load(p)] for p in (write(tmp_path, *rows), tmp_path / "p.parquet")]
    assert texts[0] == texts[1] == [f"Question {i}?" for i in range(5)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{bad", r"p\.jsonl, line 2: malformed JSON"),
        ("[1]", r"line 2: expected an object"),
        ({"text": "x"}, r"line 2: no field `prompt`"),
        ({"prompt": "  "}, r"line 2, field prompt: empty prompt"),
        ({"prompt": [{"role": "user", "content": ""}]}, r"field prompt: empty prompt"),
        ({"prompt": []}, r"field prompt: empty prompt"),
        ({"prompt": 3}, r"field prompt: expected text or a list"),
        ({"prompt": [{"role": 1, "content": "x"}]}, r"field prompt: expected text or a list"),
    ],
)
def test_bad_rows(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load(write(tmp_path, {"prompt": "fine"}, row))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "p.jsonl",
            b'{"prompt": "fine"}\n{"prompt": "caf\xe9"}\n',
            r"line 2: not UTF-8 \(byte 16 ",
        ),
        ("p.jsonl", b"[" * 200_000 + b"\n", r"line 1: (JSON that is nested too deep|malformed)"),
        ("p.parquet", b"PAR1 and then nothing", r"p\.parquet: can't be read \("),
    ],
    ids=["latin-1", "deep", "torn"],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "none.jsonl")


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        load(write(tmp_path))


def test_builtin_prompts() -> None:
    prompts = load_prompts(DataConfig())
    assert len(prompts) >= 300
    train, held = split_prompts(prompts, 64, seed=0)
    assert len(held) == 64 and not {p.text for p in held} & {p.text for p in train}
    assert {p.split for p in held} == {"heldout"} and {p.split for p in train} == {"train"}
    assert (
        max(len(p.text.split()) for p in prompts)
        > 60
        > 8
        > min(len(p.text.split()) for p in prompts)
    )


def test_duplicates_cannot_be_held_out(tmp_path: Path) -> None:
    prompts = load(write(tmp_path, *[{"prompt": f"Q {i % 6}"} for i in range(30)]))
    train, held = split_prompts(prompts, 2, seed=1)
    assert len(train) == 4 and len(held) == 2
    with pytest.raises(ValueError, match="eval_prompts: 6"):
        split_prompts(prompts, 6, seed=1)


def test_iterations_visit_every_prompt(tmp_path: Path) -> None:
    train = load(write(tmp_path, *[{"prompt": f"Q {i}"} for i in range(10)]))
    visits = [p.text for t in range(1, 6) for p in iteration_slice(train, 4, t)]
    assert len(visits) == 20 and all(visits.count(p.text) == 2 for p in train)


def test_lengths(tmp_path: Path) -> None:
    prompts = load(write(tmp_path, {"prompt": "short"}, {"prompt": "long " * 40}))
    tokenizer = byte_tokenizer()
    limits = DataConfig(max_length=100, max_prompt_length=50)
    kept, _, left_out = tokenize_prompts(prompts, tokenizer, limits, 10)
    assert [p.text for p in kept] == ["short"] and left_out == 1
    with pytest.raises(ValueError, match=r"line 2: the prompt has \d+ tokens.*max_length=100"):
        tokenize_prompts(prompts, tokenizer, DataConfig(max_length=100), 10)


def test_no_double_special_tokens(tmp_path: Path) -> None:
    (prompt,) = load(write(tmp_path, {"prompt": "abc"}), system_prompt="be brief")
    tokenizer = byte_tokenizer()
    ((tokenized,), _, _) = tokenize_prompts([prompt], tokenizer, DataConfig(), 10)
    text = tokenizer.decode(tokenized.ids)
    assert text == "<|system|>be brief<|end|><|user|>abc<|end|><|assistant|>"


def test_what_holds_out_and_a_split_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    splits = ["Test", "dev", "held-out", "VALIDATION", "train", None]
    rows = [{"prompt": f"Say {i}.", "split": split} for i, split in enumerate(splits)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_prompts(DataConfig(prompts=str(file)))
    assert [prompt.held_out for prompt in loaded] == [True] * 4 + [False] * 2
    with pytest.raises(InputError, match="data.split: 'test' can't be taken of one file"):
        load_prompts(DataConfig(prompts=str(file), split="test"))
