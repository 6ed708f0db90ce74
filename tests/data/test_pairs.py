"""Pairs that people judged: what is read, what is left out, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from comal_fast.config.schema import DataConfig
from comal_fast.data.conversation import Message
from comal_fast.data.pairs import Loaded, load_pairs, tokenize_pairs
from comal_fast.errors import InputError
from tiny import byte_tokenizer

GOOD = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def load(tmp_path: Path, *rows: Any, name: str = "pairs.jsonl", **data: Any) -> Loaded:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(DataConfig(**data), str(file))


def test_formats_agree(tmp_path: Path) -> None:
    """Plain, conversational, whole conversations, implicit prompts, HH's dialogues."""
    user = [{"role": "user", "content": "Why?"}]

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        GOOD,
        {"prompt": user, "chosen": said("So."), "rejected": said("No.")},
        {"prompt": user, "chosen": user + said("So."), "rejected": user + said("No.")},
        {"chosen": user + said("So."), "rejected": user + said("No.")},
        {f: f"\n\nHuman: Why?\n\nAssistant: {GOOD[f]}" for f in ("chosen", "rejected")},
    ]
    for row in rows:
        (pair,) = load(tmp_path, row).pairs
        assert pair.prompt.messages == (Message("user", "Why?"),)
        assert (pair.chosen, pair.rejected, pair.probability) == ("So.", "No.", None)


def test_how_sure(tmp_path: Path) -> None:
    rows = [GOOD | {"probability": 0.3}, GOOD | {"margin": 2.0}, GOOD | {"margin": -1e9}]
    found = [pair.probability for pair in load(tmp_path, *rows).pairs]
    assert found == [0.3, pytest.approx(1 / (1 + math.exp(-2))), pytest.approx(0, abs=1e-300)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"probability": 1.5}, "line 1, field probability: 1.5 is outside 0 … 1"),
        ({"probability": "high"}, "line 1, field probability: expected a finite number"),
        ({"margin": float("nan")}, "line 1, field margin: expected a finite number"),
        ({"margin": True}, "line 1, field margin: expected a finite number, found True"),
        ({"margin": 1, "probability": 1}, "line 1: both `probability` and `margin`"),
        ({"chosen": None}, "line 1: no field `chosen`"),
        ({"split": []}, "line 1, field split"),
    ],
)
def test_what_is_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(tmp_path, GOOD | more)
    assert "\n" not in str(caught.value)


def test_rows_that_are_no_pairs_are_counted(tmp_path: Path) -> None:
    """As they come in HH-RLHF: the same text twice, two conversations, a row again."""
    apart = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: e",
    }
    found = load(tmp_path, GOOD, GOOD, apart, GOOD | {"rejected": "So."}, GOOD | {"split": "test"})
    assert len(found.pairs) == 1 and found.pairs[0].prompt.held_out
    assert found.left_out == {
        "the same as an earlier row": 2,
        "the two differ before their last answers, so they do not answer one prompt": 1,
        "the same text chosen and rejected": 1,
    }
    with pytest.raises(InputError, match="no pairs in it but 1 the two differ before"):
        load(tmp_path, apart)


def test_tokens_and_what_is_too_long(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [
        GOOD,
        GOOD | {"chosen": "Because."},
        GOOD | {"prompt": "x" * 50},
        GOOD | {"chosen": "y" * 50},
        GOOD | {"prompt": "Why? ", "split": "heldout"},
    ]
    loaded = load(tmp_path, *rows)
    data = DataConfig(max_length=40, max_prompt_length=20)
    by_prompt, left_out = tokenize_pairs(loaded.pairs, tokenizer, data, 0)
    assert sum(left_out.values()) == 2
    assert left_out["more than data.max_length=40 tokens"] == 1
    assert [len(pairs) for pairs in by_prompt.values()] == [2, 1]
    first = next(iter(by_prompt.values()))[0]
    assert tokenizer.decode(first.prompt.ids) == "<|user|>Why?<|end|><|assistant|>"
    assert tokenizer.decode(first.chosen_ids) == "So.<|end|>"
    _, left_out = tokenize_pairs(loaded.pairs, tokenizer, data, 34)
    assert left_out["more than data.max_length=40 tokens"] == 4  # no room for a sample


def test_prompts_of_the_same_tokens_are_one(tmp_path: Path) -> None:
    """A template that trims: no prompt on both sides of the split."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content']|trim")
    rows = [GOOD, GOOD | {"prompt": " Why?", "chosen": "Hm.", "split": "heldout"}]
    by_prompt, _ = tokenize_pairs(load(tmp_path, *rows).pairs, tokenizer, DataConfig(), 0)
    ((prompt, pairs),) = by_prompt.items()
    assert prompt.held_out and len(pairs) == 2


def test_real_pairs() -> None:
    file = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf_harmless_pairs.jsonl"
    if not file.is_file():
        pytest.skip("no HH-RLHF pairs here")
    loaded = load_pairs(DataConfig(), str(file))
    assert len(loaded.pairs) + sum(loaded.left_out.values()) == 1000
    assert len(loaded.pairs) > 990
    assert all(pair.prompt.messages[-1].role == "user" for pair in loaded.pairs)
