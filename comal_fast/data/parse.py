"""JSON and CSV, row by row; whatever is wrong is said with its line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from comal_fast.errors import InputError

Row = tuple[str, dict[str, Any]]
"""Where it stands, such as "p.jsonl, line 3", and its fields."""
BOM = b"\xef\xbb\xbf"


def lines(path: Path, stream: IO[bytes]) -> Iterator[Row]:
    """Yield the object of each line that is not blank."""
    for number, line in enumerate(stream, 1):
        source = f"{path}, line {number}"
        text = _decode(source, line.removeprefix(BOM) if number == 1 else line)
        if number == 1 and text.strip() == "{":
            raise InputError(f"{source}: an object over many lines; give a row a line, or an array")
        if text.strip():
            yield source, _object(source, _parsed(source, _JSON.decode, text))


def array(path: Path, content: bytes) -> Iterator[Row]:
    """Yield the objects of one JSON array, each with the line that it begins in."""
    content = content.removeprefix(BOM).rstrip()
    for number, part in enumerate(content.split(b"\n"), 1):
        _decode(f"{path}, line {number}", part)
    text = content.decode()
    place, line, count = text.index("["), 1, 0
    while text[place : place + 1] != "]":  # at the array's [, or at a comma
        end = _blank(text, place + 1)
        line, place, count = line + text.count("\n", place, end), end, count + 1
        if count == 1 and text[place : place + 1] == "]":
            break
        source = f"{path}, item {count}, line {line}"
        value, end = _parsed(source, _JSON.raw_decode, text, place)
        yield source, _object(source, value)
        end = _blank(text, end)
        line, place = line + text.count("\n", place, end), end
        if text[place : place + 1] not in (",", "]"):
            cut = "; is it cut short?" if place == len(text) else ""
            raise InputError(f"{source}: malformed JSON (no , or ] follows, line {line}{cut})")
    if place + 1 < len(text):
        raise InputError(f"{path}, line {line}: malformed JSON (more behind the array's end)")


def _blank(text: str, place: int) -> int:
    """Where the blanks from there on end."""
    found = _BLANK.match(text, place)
    return found.end() if found else place


def table(path: Path, stream: IO[bytes], delimiter: str) -> Iterator[Row]:
    """Yield the rows of a CSV file by its header's names; values are text, or a list in JSON."""
    csv.field_size_limit(2**31 - 1)

    def text() -> Iterator[str]:
        for number, line in enumerate(stream, 1):
            yield _decode(f"{path}, line {number}", line.removeprefix(BOM) if number == 1 else line)

    reader = csv.reader(text(), delimiter=delimiter, strict=True)
    header: list[str] = []
    begins = 1
    try:
        for cells in reader:
            source, begins = f"{path}, line {begins}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if twice := next((x for x in header if header.count(x) > 1), None):
                    raise InputError(f"{source}: the column {twice!r} twice in the header")
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{source}: {len(cells)} cells, but the header has {len(header)} columns"
                )
            pairs = zip(header, cells, strict=True)
            yield source, {name: _cell(source, name, cell) for name, cell in pairs}
    except csv.Error as error:
        raise InputError(f"{path}, line {begins}: malformed CSV ({error})") from None


def _cell(source: str, name: str, cell: str) -> Any:
    """The text, or the list or object that it is in JSON."""
    if not re.match(r'\s*(\[\s*\{|\{\s*["\'])', cell):
        return cell
    try:
        return _JSON.decode(cell)
    except (ValueError, RecursionError):
        if re.match(r"\s*\[?\s*\{\s*'", cell):
            raise InputError(
                f"{source}, field {name}: a list as Python prints it; write it as JSON"
            ) from None
        return cell


def _decode(source: str, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from None


class _Twice(ValueError):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique)
_BLANK = re.compile(r"[ \t\r\n]*")


def _parsed(source: str, parse: Callable[..., Any], *given: Any) -> Any:
    try:
        return parse(*given)
    except RecursionError:
        raise InputError(f"{source}: JSON that is nested too deep") from None
    except _Twice as error:
        raise InputError(f"{source}: the field {str(error)!r:.60} twice in one object") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: malformed JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:  # an integer of too many digits
        raise InputError(f"{source}: JSON that can't be read ({_words(error)})") from None


def _object(source: str, value: Any) -> dict[str, Any]:
    """A row. Half a surrogate pair, which JSON can write, is no text that could be tokenised."""
    if not isinstance(value, dict):
        raise InputError(f'{source}: expected an object such as {{"prompt": "…"}}')
    for name, field in value.items():
        try:
            json.dumps([name, field], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = name.encode("utf-8", "backslashreplace").decode()
            half = error.object[error.start].encode("ascii", "backslashreplace").decode()
            raise InputError(
                f"{source}, field {shown:.60}: half a surrogate pair ({half}), which is no "
                "character; a text was cut in the middle of one"
            ) from None
        except RecursionError:
            raise InputError(f"{source}: JSON that is nested too deep") from None
    return value


def _words(error: Exception) -> str:
    return str(error).partition(";")[0]
