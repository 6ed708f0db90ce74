"""Rows of a data file, of a folder of shards, of a hub dataset, or of the package's own prompts.

JSON (a row a line, or one array), CSV, TSV and parquet; JSON and CSV by gzip or zstd too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from comal_fast.data.parse import BOM, Row, array, lines, table
from comal_fast.errors import InputError

HELD_OUT = ("heldout", "held-out", "held_out", "test", "validation", "valid", "val", "dev", "eval")
"""What a row's `split` says where it must not be trained on."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull`",
    b"ARROW1": "an Arrow file; write it as parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "not UTF-8 but UTF-16; save the file as UTF-8",
    b"\xfe\xff": "not UTF-8 but UTF-16; save the file as UTF-8",
    b"<": "HTML or XML, not data; was a web page saved in place of the file?",
}
_KINDS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
}
_SAVED = ("dataset_dict.json", "state.json")  # in folders by `save_to_disk`
_ABOUT = ("dataset_info.json", "dataset_infos.json")
_SPLIT_OF_A_FILE = re.compile(
    r"(?<![a-z])((train|test|validation|valid|val|dev|eval)(?:_[a-z]+)*)(?![a-z])"
)


def rows(name: str, option: str, split: str = "train") -> Iterator[Row]:
    """Yield every row of `name`, the value of `option`, with where it stands.

    `split`: of a hub dataset, or of a folder whose files are named by split. Values of CSV are
    text, or what JSON makes of a list. Raises InputError naming file and line.
    """
    path = Path(name).expanduser()
    if name == "builtin":
        path = Path(str(files("comal_fast") / "data" / "prompts.jsonl"))
    if any((path / file).is_file() for file in _SAVED):
        yield from _saved_rows(path, option, split)
    elif path.is_dir():
        for shard in _shards(path, option, split):
            yield from _file(shard, option)
    elif path.is_file():
        if split != "train":
            raise InputError(
                f"data.split: {split!r} can't be taken of one file, {path}; give the file of that "
                "split, or a folder"
            )
        yield from _file(path, option)
    elif path.exists():
        raise InputError(f"{option} {name}: neither a file nor a folder")
    elif _kind(path) or path.suffix in (".txt", ".gz", ".zst") or path.is_absolute():
        raise InputError(f"{option} {name}: no such file")
    else:
        yield from _hub_rows(name, option, split)


def split_of(source: str, row: dict[str, Any]) -> str | None:
    """What the row says of where it belongs. Raises InputError where that is no text."""
    split = row.get("split")
    if split is not None and not isinstance(split, str):
        raise InputError(
            f"{source}, field split: expected text such as train or heldout, found {split!r:.60}"
        )
    return split.lower() if split else None


def _kind(path: Path) -> str | None:
    """By the name, without what tells the compression."""
    if path.suffix in (".gz", ".zst"):
        path = path.with_suffix("")
    return _KINDS.get(path.suffix)


def _shards(folder: Path, option: str, split: str) -> list[Path]:
    """The folder's data files, sorted; where they are named by split, those of `split`."""
    if not re.fullmatch(r"\w+", split):
        raise InputError(
            f"data.split: {split!r} can't be taken of the folder {folder}; a part of a split is "
            "for hub datasets, give a split's name"
        )
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _kind(path) and path.name not in _ABOUT
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    kinds = sorted({str(_kind(path)) for path in found})
    if len(kinds) > 1:
        raise InputError(
            f"{option} {folder}: it holds {' and '.join(kinds)} files; give one file, or a folder "
            "of one kind"
        )
    named = [_named(path.relative_to(folder)) for path in found]
    if any(name for name, _ in named):
        whole = [path for path, (name, _) in zip(found, named, strict=True) if name == split]
        alike = {name for name, word in named if word == split}
        if not whole and len(alike) == 1:  # train_data-00000 is of train
            whole = [path for path, (name, _) in zip(found, named, strict=True) if name in alike]
        if not whole:
            there = ", ".join(sorted({name for name, _ in named if name}))
            raise InputError(
                f"{option} {folder}: no files of data.split={split}; its files are named {there}"
            )
        found = whole
    if not found:
        raise InputError(
            f"{option} {folder}: no JSON, CSV or parquet files in the folder; give one that has"
        )
    return found


def _named(path: Path) -> tuple[str, str]:
    """(the split that a file is named by, its first word), such as train_prefs and train."""
    found = _SPLIT_OF_A_FILE.findall(str(path).lower())
    return found[-1] if found else ("", "")


def _file(path: Path, option: str) -> Iterator[Row]:
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
            stream.seek(0)
            yield from _opened(path, stream, start)
    except OSError as error:
        reason = error.strerror or _first(error)
        raise InputError(f"{option} {path}: can't be read ({reason})") from None
    except _Unreadable as error:
        raise InputError(f"{option} {path}: can't be read ({error})") from None


class _Unreadable(Exception):
    """Of a file: why, where that is no matter of a line."""


def _opened(path: Path, stream: IO[bytes], start: bytes) -> Iterator[Row]:
    kind = _kind(path)
    if start.startswith(b"PAR1") or kind == "parquet":
        yield from _parquet(path)
        return
    codec = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
    if codec is None and path.suffix in (".gz", ".zst"):
        raise _Unreadable(f"its name ends in {path.suffix}, but it is not compressed so")
    if codec is not None:
        import pyarrow as pa

        stream = io.BufferedReader(pa.input_stream(stream, compression=codec))
        start = stream.peek(64)
    start = start.removeprefix(BOM).lstrip()
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise _Unreadable(what)
    if kind == "csv":
        yield from table(path, stream, "\t" if ".tsv" in path.suffixes else ",")
    elif start.startswith(b"["):
        yield from array(path, stream.read())
    else:
        yield from lines(path, stream)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", _without_nulls(row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # a date too far off
        raise _Unreadable(_first(error)) from None


def _hub_rows(name: str, option: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:  # the hub client raises many kinds
        raise InputError(
            f"{option} {name}: neither a file nor a loadable dataset ({_first(error)})"
        ) from None
    yield from _numbered(name, dataset)


def _saved_rows(folder: Path, option: str, split: str) -> Iterator[Row]:
    """Of what `datasets` wrote by `save_to_disk`."""
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # it raises many kinds
        raise InputError(f"{option} {folder}: can't be read ({_first(error)})") from None
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise InputError(
                f"{option} {folder}: no data.split={split}; it has {', '.join(dataset)}"
            )
        dataset = dataset[split]
    yield from _numbered(str(folder), dataset)


def _numbered(name: str, dataset: Any) -> Iterator[Row]:
    for number, row in enumerate(dataset, 1):
        yield f"{name}, row {number}", _without_nulls(dict(row))


def _without_nulls(value: Any) -> Any:
    """Without the fields that Arrow alone has put in, so that all rows have the same."""
    if isinstance(value, dict):
        return {name: _without_nulls(x) for name, x in value.items() if x is not None}
    if isinstance(value, list):
        return [_without_nulls(x) for x in value]
    return value


def _first(error: Exception) -> str:
    """The first line of what it says, or else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
