"""Configurations and data of every make: taken, or refused in a line; never a traceback."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from comal_fast.config import load_config, to_dict
from comal_fast.config.load import known_keys
from comal_fast.config.schema import DataConfig
from comal_fast.data.pairs import load_pairs
from comal_fast.data.prompts import load_prompts
from comal_fast.errors import InputError

ODD = [
    None, True, False, 0, -1, 1, 7, 2**63, -(2**70), 1e400, -0.0, 1e-320, 0.5, float("nan"),
    float("inf"), "", " ", "0", "off", "none", "8GiB", "-8GiB", "../x", "/dev/null", "a" * 5000,
    "\u202e\u0000", "{{x}}", "[red]", "é", [], [1], [[]], ["a", "a"], {}, {"a": 1}, {"name": "x"},
    {"name": "criteria"}, {1: 2}, "2026-11-27", "1e-3", "!!python/object:os.system",
]  # fmt: skip
CONFIGS, FILES = 2000, 1000


def change(tree: dict[str, Any], generator: random.Random, keys: list[str]) -> None:
    """Set, move, misspell or drop an option somewhere."""
    key = generator.choice(keys)
    if generator.random() < 0.2:  # misspelt
        at = generator.randrange(len(key))
        key = key[:at] + generator.choice(string.ascii_lowercase + ". ") + key[at + 1 :]
    *groups, last = key.split(".")
    node: Any = tree
    for group in groups:
        if not isinstance(node.get(group), dict):
            node[group] = {}
        node = node[group]
    if generator.random() < 0.1:
        node.pop(last, None)
    else:
        node[last] = generator.choice(ODD)


def damage(text: str, generator: random.Random) -> bytes:
    """Bytes of a text, some of them others, missing, twice."""
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(max(1, len(content)))
        act = generator.randrange(4)
        if act == 0:
            content[at : at + 1] = bytes([generator.randrange(256)])
        elif act == 1:
            del content[at : at + generator.randrange(1, 30)]
        elif act == 2:
            content[at:at] = content[at : at + generator.randrange(1, 30)]
        else:
            content[at:at] = generator.choice([b"[", b"{", b'"', b"\xff", b"\x00", b"&a *a", b"\n"])
    return bytes(content)


def refused_in_a_line(work: Callable[[], Any]) -> bool:
    try:
        work()
    except InputError as error:
        assert "\n" not in str(error), str(error)
        return True
    return False


@pytest.mark.slow
def test_configurations(tiny_run: Path, tmp_path: Path) -> None:
    generator, keys = random.Random(0), known_keys()
    whole, file = to_dict(load_config(tiny_run)), tmp_path / "fuzzed.yaml"
    refused = 0
    for number in range(CONFIGS):
        tree = json.loads(json.dumps(whole))
        for _ in range(generator.randrange(1, 4)):
            change(tree, generator, keys)
        text = yaml.safe_dump(tree, allow_unicode=True)
        content = damage(text, generator) if number % 4 == 0 else text.encode("utf-8", "replace")
        file.write_bytes(content)
        overrides = [f"{generator.choice(keys)}={generator.choice(ODD)}"] if number % 3 == 0 else []
        refused += refused_in_a_line(lambda given=overrides: load_config(file, given))
    assert CONFIGS // 3 < refused < CONFIGS


ROWS: list[Any] = [
    {"prompt": "Say it."}, {"messages": [{"role": "user", "content": "Hi."}]},
    {"prompt": "a", "chosen": "b", "rejected": "c"}, {"conversations": [{"from": "human"}]},
    {"prompt": [{"role": "user", "content": "x"}], "chosen": None, "rejected": {}}, [], "text", 7,
    {"prompt": "\ud83d"}, {"prompt": "", "split": []}, {"prompt": {"a": 1}}, {"prompt": 1.5},
    {"messages": [{"role": "tool", "content": None, "tool_calls": [{}]}]}, {},
    {"prompt": "p", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"},
    {"prompt": "x" * 3000, "chosen_score": float("nan"), "chosen": "a", "rejected": "a"},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".csv", ".parquet", ".jsonl.gz"])
def test_data_files(tmp_path: Path, suffix: str) -> None:
    generator, file = random.Random(suffix), tmp_path / f"rows{suffix}"
    refused, count = 0, -(-FILES // 6)
    for number in range(count):
        rows = [generator.choice(ROWS) for _ in range(generator.randrange(1, 5))]
        text = "\n".join(json.dumps(row) for row in rows)
        if suffix == ".json":
            text = json.dumps(rows)
        file.write_bytes(damage(text, generator) if number % 2 else text.encode())
        data = DataConfig(prompts=str(file), eval_prompts=2)
        refused += refused_in_a_line(lambda given=data: load_prompts(given))
        refused += refused_in_a_line(lambda given=data: load_pairs(given, str(file)))
    assert refused
