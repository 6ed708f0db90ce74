"""Prompts from JSONL, parquet, a hub name or the package's own file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from comal_fast.config.schema import DataConfig
from comal_fast.errors import InputError

Message = dict[str, str]
Messages = tuple[tuple[str, str], ...]
"""(role, content) of each message of a conversation."""
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Prompt:
    """One prompt: the messages before the response, and where it came from (file and line)."""

    messages: Messages
    source: str
    split: str | None = None

    @property
    def text(self) -> str:
        """What the user said last."""
        return last_user_text(self.messages)


def last_user_text(messages: Messages) -> str:
    """What the user said last; empty where no user spoke."""
    return next((content for role, content in reversed(messages) if role == "user"), "")


def load_prompts(data: DataConfig) -> list[Prompt]:
    """All prompts of `data.prompts`, duplicates dropped, in file order.

    TRL's formats: prompt-only or preference rows, plain or conversational, implicit prompts too.
    Raises InputError naming file, line and field.
    """
    seen: dict[Messages, Prompt] = {}
    for source, row in _rows(data):
        messages = _messages(source, row)
        if data.system_prompt is not None and messages[0][0] != "system":
            messages = (("system", data.system_prompt), *messages)
        seen.setdefault(messages, Prompt(messages, source, row.get("split")))
    if not seen:
        raise InputError(f"data.prompts {data.prompts}: no prompts in it")
    return list(seen.values())


def split_prompts(
    prompts: list[Prompt], eval_prompts: int, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held-out), each in a seeded order.

    Rows that say `"split": "heldout"` (or "test", "validation") are the pool of the held-out ones;
    without any, `eval_prompts` of all are set aside.
    """
    shuffled = sorted(prompts, key=lambda prompt: prompt.messages)
    random.Random(f"split {seed}").shuffle(shuffled)
    held = [p for p in shuffled if p.split in ("heldout", "test", "validation")]
    train = [p for p in shuffled if p.split not in ("heldout", "test", "validation")]
    if not held:
        held, train = train[:eval_prompts], train[eval_prompts:]
    if len(held) < eval_prompts or not train:
        raise InputError(
            f"data.eval_prompts: {eval_prompts} held-out prompts asked for, but of {len(prompts)} "
            f"usable prompts {len(held)} can be held out and {len(train)} trained on"
        )
    return train, held[:eval_prompts]


def iteration_slice(train: list[Prompt], per_iteration: int | None, iteration: int) -> list[Prompt]:
    """The prompts of 1-based `iteration`: consecutive slices, around and around."""
    if per_iteration is None or per_iteration >= len(train):
        return train
    start = (iteration - 1) * per_iteration
    return [train[i % len(train)] for i in range(start, start + per_iteration)]


def _rows(data: DataConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    if data.prompts == "builtin":
        path = Path(str(files("comal_fast") / "data" / "prompts.jsonl"))
    else:
        path = Path(data.prompts)
    if path.is_file() and path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
            raise InputError(f"data.prompts {path}: can't be read ({_first(error)})") from None
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row
    elif path.is_file():
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                source = f"{path}, line {number}"
                if line.strip():
                    yield source, _parse(source, line)
    elif path.suffix in (".jsonl", ".json", ".parquet", ".txt") or path.is_absolute():
        raise InputError(f"data.prompts {data.prompts}: no such file")
    else:
        yield from _hub_rows(data)


def _hub_rows(data: DataConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(data.prompts, split=data.split)
    except Exception as error:  # the hub client raises many kinds
        raise InputError(
            f"data.prompts {data.prompts}: neither a file nor a loadable dataset ({_first(error)})"
        ) from None
    for number, row in enumerate(dataset, 1):
        yield f"{data.prompts}, row {number}", dict(row)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"data.prompts {path}: can't be read ({error.strerror})") from None


def _first(error: Exception) -> str:
    """The first line of what it says, or else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _parse(source: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from None
    except RecursionError:
        raise InputError(f"{source}: JSON that is nested too deep") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: malformed JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(row, dict):
        raise InputError(f'{source}: expected an object such as {{"prompt": "…"}}')
    return row


def _messages(source: str, row: dict[str, Any]) -> Messages:
    prompt, name = row.get("prompt"), "prompt"
    if prompt is None and "chosen" in row and "rejected" in row:
        prompt, name = _implicit_prompt(row["chosen"], row["rejected"]), "chosen"
    if prompt is None:
        raise InputError(f"{source}: no field `prompt` (and no `chosen` with `rejected`)")
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
        if name == "chosen" and _TURN.match(prompt):
            turns = _dialogue(prompt)
    else:
        turns = prompt
    if not isinstance(turns, list) or not all(
        isinstance(m, dict) and all(isinstance(m.get(part), str) for part in ("role", "content"))
        for m in turns
    ):
        raise InputError(f"{source}, field {name}: expected text or a list of role and content")
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise InputError(f"{source}, field {name}: empty prompt; it must end with a user's text")
    return tuple((m["role"], m["content"]) for m in turns)


def _implicit_prompt(chosen: Any, rejected: Any) -> Any:
    """The common beginning of the two, cut back to a whole message or turn."""
    length = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        length += 1
    if isinstance(chosen, str):
        turns = [m for m in _TURN.finditer(chosen[:length]) if m.group(1) == "Assistant"]
        return chosen[: turns[-1].start()] if turns else chosen[:length].rpartition(" ")[0]
    return list(chosen[:length])


def _dialogue(text: str) -> list[Message]:
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
