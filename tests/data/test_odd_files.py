"""Odd and malformed data files: read as they were meant, or one line with file, line and field."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comal_fast.config.schema import DataConfig
from comal_fast.data.prompts import load_prompts
from comal_fast.data.template import prompt_ids
from comal_fast.errors import InputError
from tiny import byte_tokenizer

Files = bytes | dict[str, bytes]
A, B = b'{"prompt": "a"}\n', b'{"prompt": "b"}\n'
ROWS = [{"prompt": "a"}, {"prompt": "b"}]
BOM = b"\xef\xbb\xbf"
ARRAY = json.dumps(ROWS, indent=2).encode()
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "name": "f"},
]


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue())


def parquet(*rows: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("p.jsonl", content)
    return out.getvalue()


def row(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


MEANT: dict[str, tuple[str, Files, list[str]]] = {
    "a byte order mark": ("p.jsonl", BOM + A + B, ["a", "b"]),
    "CRLF": ("p.jsonl", (A + B).replace(b"\n", b"\r\n"), ["a", "b"]),
    "no last line end": ("p.jsonl", (A + B)[:-1], ["a", "b"]),
    "blank lines": ("p.jsonl", b"\n" + A + b"  \n\n" + B, ["a", "b"]),
    "ndjson": ("p.ndjson", A + B, ["a", "b"]),
    "lines in .json": ("p.json", A + B, ["a", "b"]),
    "no suffix": ("prompts", A + B, ["a", "b"]),
    "an indented array": ("p.json", ARRAY, ["a", "b"]),
    "an array in one line": ("p.json", json.dumps(ROWS).encode(), ["a", "b"]),
    "an array in .jsonl": ("p.jsonl", b" \r\n" + ARRAY + b"\n\n", ["a", "b"]),
    "an array with a mark": ("p.json", BOM + ARRAY, ["a", "b"]),
    "csv": ("p.csv", b'id,prompt\n1,a\n2,"b, ""b""\nb"\n', ["a", 'b, "b"\nb']),
    "csv of a spreadsheet": ("p.csv", BOM + b"prompt\r\na\r\n\r\nb\r\n", ["a", "b"]),
    "tsv": ("p.tsv", b"prompt\tn\na\t1\nb\t2\n", ["a", "b"]),
    "csv with lists": (
        "p.csv",
        b'prompt\n"[{""role"": ""user"", ""content"": ""a""}]"\nb {x}\n',
        ["a", "b {x}"],
    ),
    "csv with long cells": ("p.csv", b"prompt\n" + b"a" * 200_000 + b"\n", ["a" * 200_000]),
    "gzip": ("p.jsonl.gz", gzip.compress(A) + gzip.compress(B), ["a", "b"]),
    "gzip without the name": ("p.jsonl", gzip.compress(A + B), ["a", "b"]),
    "zstd": ("p.jsonl.zst", zstd(BOM + A + B), ["a", "b"]),
    "an array in zstd": ("p.json.zst", zstd(ARRAY), ["a", "b"]),
    "csv in gzip": ("p.csv.gz", gzip.compress(b"prompt\na\nb\n"), ["a", "b"]),
    "parquet": ("p.parquet", parquet(*ROWS), ["a", "b"]),
    "parquet without the name": ("p.bin", parquet(*ROWS), ["a", "b"]),
    "shards": (
        "d",
        {"2.jsonl": B, "1.jsonl.gz": gzip.compress(A), "README.md": b"#", "_x.jsonl": b"?",
         "dataset_info.json": b"{}", ".cache/3.jsonl": b"?"},
        ["a", "b"],
    ),
    "shards of splits": (
        "d",
        {"data/train-00001-of-2.parquet": parquet({"prompt": "b"}),
         "data/train-00000-of-2.parquet": parquet({"prompt": "a"}),
         "data/test-00000-of-1.parquet": parquet({"prompt": "held out"})},
        ["a", "b"],
    ),
    "shards of a split by a longer name": (
        "d", {"train_prefs-0.jsonl": A + B, "test_prefs-0.jsonl": b"?"}, ["a", "b"]
    ),
    "parts of text": (
        "p.jsonl",
        row(prompt=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]),
        ["ab"],
    ),
    "ShareGPT": (
        "p.jsonl",
        row(prompt=[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"},
                    {"from": "human", "value": "a"}]),
        ["a"],
    ),
    "Human and Assistant": (
        "p.jsonl", row(prompt="\n\nHuman: x\n\nAssistant: y\n\nHuman: a\n\nAssistant:"), ["a"]
    ),
    "a call, and a tool's answer": ("p.jsonl", row(prompt=TOOLS), ["a"]),
    "the same in parquet": ("p.parquet", parquet({"prompt": TOOLS}), ["a"]),
    "fields that are nothing": ("p.jsonl", row(prompt="a", chosen=None, split=None), ["a"]),
    "implicit prompts": (
        "p.jsonl", row(chosen="a b: yes", rejected="a b: no", prompt=None), ["a b:"]
    ),
    "characters": (
        "p.jsonl", row(prompt="a\u2028\0\U0001f469\u200d\U0001f467"), ["a\u2028\0👩\u200d👧"]
    ),
    "an unused huge number": ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 4000 + b"}", ["a"]),
    "a pair of surrogates": ("p.jsonl", b'{"prompt": "\\ud83d\\ude00"}', ["😀"]),
}  # fmt: skip

HALF = r"p\.jsonl, line 2, field prompt: half a surrogate pair \(\\ud83d\)"
FAULTS: dict[str, tuple[str, Files, str]] = {
    "Latin-1": (
        "p.jsonl", A + b'{"prompt": "caf\xe9"}\n', r"p\.jsonl, line 2: not UTF-8 \(byte 16"
    ),
    "Latin-1 in csv": ("p.csv", b"prompt\na\ncaf\xe9\n", r"p\.csv, line 3: not UTF-8 \(byte 4"),
    "Latin-1 in an array": ("p.json", ARRAY.replace(b"b", b"\xe9"), r"p\.json, line 6: not UTF-8"),
    "UTF-16": (
        "p.jsonl", A.decode().encode("utf-16"), r"p\.jsonl: can't be read \(not UTF-8 but UTF-16"
    ),
    "half a surrogate": ("p.jsonl", A + b'{"prompt": "x \\ud83d y"}\n', HALF),
    "half a surrogate within": (
        "p.jsonl", A + b'{"prompt": [{"role": "user", "content": "x \\ud83d"}]}\n', HALF
    ),
    "half a surrogate in a name": ("p.jsonl", b'{"\\udc00": 1}', r"line 1, field \\udc00: half a"),
    "nested too deep": ("p.jsonl", A + b"[" * 200_000 + b"\n", r"line 2: JSON that is nested too"),
    "a huge number": (
        "p.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"line 1: JSON that can't be read"
    ),
    "a list": ("p.jsonl", A + b"[1]\n", r"line 2: expected an object"),
    "a text": ("p.jsonl", b'"a"\n', r"line 1: expected an object"),
    "nothing": ("p.jsonl", A + b"null\n", r"line 2: expected an object"),
    "a key twice": (
        "p.jsonl", b'{"prompt": "a", "prompt": "b"}', r"line 1: the field 'prompt' twice"
    ),
    "single quotes": ("p.jsonl", b"{'prompt': 'a'}", r"line 1: malformed JSON \(.*column 2\)"),
    "no number": ("p.jsonl", b'{"prompt": NaN}', r"line 1, field prompt: expected text .*float"),
    "an object over lines": (
        "p.json", b'{\n "prompt": "a"\n}', r"line 1: an object over many lines"
    ),
    "an array cut short": ("p.json", ARRAY[:-4], r"p\.json, item 2, line 5: malformed JSON"),
    "an array without end": ("p.json", ARRAY[:-1], r"item 2, line 5: .*is it cut short"),
    "an array without comma": (
        "p.json", b'[{"prompt": "a"}\n {"prompt": "b"}]', r"item 1, line 1: .*line 2"
    ),
    "an array and more": ("p.json", ARRAY + b"\n{}", r"p\.json, line 8: malformed JSON \(more"),
    "an array of texts": ("p.json", b'[\n"a",\n"b"]', r"item 1, line 2: expected an object"),
    "a comma too many": ("p.json", b'[{"prompt": "a"},]', r"item 2, line 1: malformed JSON"),
    "a web page": ("p.jsonl", b"\n <!DOCTYPE html>\n", r"p\.jsonl: can't be read \(HTML or XML"),
    "a pointer of Git LFS": (
        "p.parquet.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"
    ),
    "a zip archive": ("p.jsonl", zipped(A), r"can't be read \(a zip archive; unpack it"),
    "gzip cut short": (
        "p.jsonl.gz", gzip.compress(A * 99)[:-20], r"p\.jsonl\.gz: can't be read \("
    ),
    "zstd cut short": ("p.jsonl.zst", zstd(A * 99)[:-4], r"p\.jsonl\.zst: can't be read \("),
    "no gzip": ("p.jsonl.gz", A, r"ends in \.gz, but it is not compressed so"),
    "parquet cut short": ("p.parquet", parquet(*ROWS)[:-9], r"p\.parquet: can't be read \("),
    "JSON named parquet": ("p.parquet", A, r"p\.parquet: can't be read \("),
    "csv without header": ("p.csv", b"a\nb\n", r"p\.csv, line 2: no field `prompt`.*it has 'a'"),
    "csv with semicolons": ("p.csv", b"prompt;n\na;1\n", r"line 2: no field `prompt`.*'prompt;n'"),
    "csv with ragged rows": (
        "p.csv", b'prompt,n\n"a\nb",1\nc\n', r"p\.csv, line 4: 1 cells, .* 2 col"
    ),
    "csv with an open quote": ("p.csv", b'prompt\na\n"b\nc\n', r"p\.csv, line 3: malformed CSV"),
    "csv with a column twice": (
        "p.csv", b"prompt,prompt\na,b\n", r"line 1: the column 'prompt' twice"
    ),
    "csv with lists of Python": (
        "p.csv", b"prompt\n\"[{'role': 'user'}]\"\n", r"line 2, field prompt: a list as Python"
    ),
    "empty": ("p.jsonl", b"", r"data\.prompts .*p\.jsonl: no prompts in it"),
    "blank": ("p.json", b"\n \n", r"p\.json: no prompts in it"),
    "split is a list": (
        "p.jsonl", row(prompt="a", split=[]), r"line 1, field split: expected text"
    ),
    "two that are nothing": (
        "p.jsonl", row(chosen=None, rejected=None), r"line 1, field chosen: .*found nothing"
    ),
    "two objects": (
        "p.jsonl", row(chosen={"a": 1}, rejected={}), r"line 1, field chosen: .*found dict"
    ),
    "an image": (
        "p.jsonl", row(prompt=[{"role": "user", "content": [{"type": "image", "url": "x"}]}]),
        r"line 1, field prompt: message 1: its content has a part 'image'",
    ),
    "content is a number": (
        "p.jsonl", row(prompt=[{"role": "user", "content": 3}]),
        r"line 1, field prompt: message 1: content is int",
    ),
    "no role": (
        "p.jsonl", row(prompt=[{"content": "a"}]), r"field prompt: .*message 1 has no role"
    ),
    "no content": (
        "p.jsonl", row(prompt=[{"from": "human"}]), r"field prompt: .*message 1 has no content"
    ),
    "a system alone": (
        "p.jsonl", row(prompt=[{"role": "system", "content": "a"}]), r"field prompt: empty prompt"
    ),
    "a call without answer": (
        "p.jsonl", row(prompt=TOOLS[:2]), r"line 1, field prompt: .*tool_calls"
    ),
    "variables are a text": (
        "p.jsonl", row(prompt="a", chat_template_kwargs="no"),
        r"line 1, field chat_template_kwargs: expected an object"
    ),
    "tools are an object": (
        "p.jsonl", row(prompt="a", tools={"a": 1}), r"line 1, field tools: expected a list"
    ),
    "pictures": (
        "p.jsonl", row(prompt="a", images=["a.png"]), r"line 1, field images: only text is read"
    ),
    "a folder without data": ("d", {"README.md": b"#"}, r"d: no JSON, CSV or parquet files"),
    "a folder of two kinds": ("d", {"a.csv": b"", "b.jsonl": A}, r"d: it holds JSON and csv files"),
    "a folder without the split": (
        "d", {"test-0.jsonl": A}, r"no files of data\.split=train; .*test"
    ),
    "a shard with a fault": (
        "d", {"1.jsonl": A, "2.jsonl": B + b"[]"}, r"2\.jsonl, line 2: expected an"
    ),
    "not there": ("d", {}, r"none\.jsonl\.gz: no such file"),
}  # fmt: skip


def write(folder: Path, name: str, content: Files) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif not content:
        return folder / "none.jsonl.gz"
    else:
        for inside, some in content.items():
            (path / inside).parent.mkdir(parents=True, exist_ok=True)
            (path / inside).write_bytes(some)
    return path


@pytest.mark.parametrize("case", MEANT)
def test_read_as_meant(case: str, tmp_path: Path) -> None:
    name, content, texts = MEANT[case]
    prompts = load_prompts(DataConfig(prompts=str(write(tmp_path, name, content))))
    assert [prompt.text for prompt in prompts] == texts
    tokenizer = byte_tokenizer()
    for prompt in prompts:  # whatever was read can be tokenised
        assert prompt.text in tokenizer.decode(prompt_ids(tokenizer, prompt))


@pytest.mark.parametrize("case", FAULTS)
def test_one_line(case: str, tmp_path: Path) -> None:
    name, content, words = FAULTS[case]
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=words) as caught:
        load_prompts(DataConfig(prompts=str(path)))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_part_of_a_split_is_for_the_hub(tmp_path: Path) -> None:
    folder = write(tmp_path, "d", {"a.jsonl": A})
    with pytest.raises(InputError, match=r"data\.split: 'train\[:5%\]'"):
        load_prompts(DataConfig(prompts=str(folder), split="train[:5%]"))


def test_folders_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train, test = (datasets.Dataset.from_list(rows) for rows in (ROWS, [{"prompt": "held out"}]))
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        prompts = load_prompts(DataConfig(prompts=str(tmp_path / name)))
        assert [p.text for p in prompts] == ["a", "b"]
    with pytest.raises(InputError, match=r"two: no data\.split=dev; it has train, test"):
        load_prompts(DataConfig(prompts=str(tmp_path / "two"), split="dev"))


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "d", {"a.jsonl": A})
    monkeypatch.chdir(tmp_path)
    assert [p.source for p in load_prompts(DataConfig(prompts="d"))] == ["d/a.jsonl, line 1"]
