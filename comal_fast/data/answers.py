"""Questions and answers of AlpacaEval, Arena-Hard and MT-Bench, in the files that these read.

- `alpaca_eval`: a JSON array of {instruction, output, generator}; questions {instruction}.
- `arena_hard`: a line each. Version 2: questions {uid, prompt}, answers {uid, ans_id, model,
  messages}, the last of them with `content: {answer}`. Version 0.1: as MT-Bench, with
  {content} for every turn.
- `mt_bench`: a line each; questions {question_id, turns}, answers {question_id, answer_id,
  model_id, choices: [{index, turns}]}. A turn is asked with the answers before it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comal_fast.data.read import rows
from comal_fast.errors import InputError

FORMATS = ("alpaca_eval", "arena_hard", "mt_bench")
Key = int | str


@dataclass(frozen=True)
class Question:
    """What is asked: an id, or the text itself where the format has none, and its turns."""

    id: Key
    turns: tuple[str, ...]
    dataset: str | None = None
    """Of AlpacaEval: the part of it."""
    uid: bool = False
    """Of Arena-Hard: whether it is of version 2, which calls the id so."""


@dataclass(frozen=True)
class Answers:
    """A system's answers by question; a turn of a question is one, in order."""

    name: str
    turns: dict[Key, tuple[str, ...]]
    asked: dict[Key, str]
    """The first turn of those questions whose text the file holds."""


def load_questions(path: str, form: str) -> list[Question]:
    """The questions of a file of that format. InputError naming line and field."""
    found: dict[Key, Question] = {}
    for source, row in rows(path, "--questions"):
        question = _question(source, row, form)
        if question.id in found:
            raise InputError(f"{source}: the question {question.id!r} stands there twice")
        found[question.id] = question
    if not found:
        raise InputError(f"--questions {path}: no question in it")
    return list(found.values())


def _question(source: str, row: dict[str, Any], form: str) -> Question:
    if form == "alpaca_eval":
        text, dataset = _text(source, row, "instruction"), row.get("dataset")
        return Question(text, (text,), dataset if isinstance(dataset, str) else None)
    if form == "arena_hard" and "uid" in row:
        return Question(_id(source, row, "uid"), (_text(source, row, "prompt"),), uid=True)
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{source}, field turns: expected a list of texts")
    texts = [_content(f"{source}, field turns", turn) for turn in turns]
    return Question(_id(source, row, "question_id"), tuple(texts))


def to_file(
    form: str, questions: Sequence[Question], answers: Mapping[Key, Sequence[str]], name: str
) -> bytes:
    """The file of one system, called `name`; answers: of each question, one a turn."""
    made = [_row(form, q, list(answers[q.id]), name) for q in questions]
    if form == "alpaca_eval":
        return (json.dumps(made, ensure_ascii=False, indent=2) + "\n").encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()


def _row(form: str, question: Question, turns: list[str], name: str) -> dict[str, Any]:
    if form == "alpaca_eval":
        dataset = {"dataset": question.dataset} if question.dataset else {}
        return {"instruction": question.id, "output": turns[0], "generator": name, **dataset}
    own = short_id([question.id, name, turns])
    if form == "arena_hard" and question.uid:
        asked = {"role": "user", "content": question.turns[0]}
        answer = {"role": "assistant", "content": {"answer": turns[0]}}
        return {
            "uid": question.id,
            "ans_id": own,
            "model": name,
            "messages": [asked, answer],
            "tstamp": time.time(),
            "metadata": {},
        }
    told: list[Any] = [{"content": t} for t in turns] if form == "arena_hard" else turns
    return {
        "question_id": question.id,
        "answer_id": own,
        "model_id": name,
        "choices": [{"index": 0, "turns": told}],
        "tstamp": time.time(),
    }


def short_id(content: Any) -> str:
    """22 characters, the same for the same content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:22]


def read_answers(path: str) -> Answers:
    """The answers of any of the formats, told by their fields. InputError naming line and field."""
    turns: dict[Key, tuple[str, ...]] = {}
    asked: dict[Key, str] = {}
    names: set[str] = set()
    for source, row in rows(path, "answers"):
        key, said, name, question = _answer(source, row)
        if key in turns:
            raise InputError(f"{source}: the question {key!r:.60} is answered twice")
        turns[key] = said
        names.add(name)
        if question is not None:
            asked[key] = question
    if not turns:
        raise InputError(f"{path}: no answer in it")
    if len(names) > 1:
        raise InputError(f"{path}: answers of {' and '.join(sorted(names)[:2])}; give a file each")
    return Answers(names.pop(), turns, asked)


def _answer(source: str, row: dict[str, Any]) -> tuple[Key, tuple[str, ...], str, str | None]:
    """(question, answers by turn, system, the question's text where the row has it)."""
    if "instruction" in row:
        text = _text(source, row, "instruction")
        return text, (_text(source, row, "output"),), _text(source, row, "generator"), text
    if "uid" in row:
        messages = row.get("messages")
        if not isinstance(messages, list) or len(messages) < 2:
            raise InputError(f"{source}, field messages: expected a question and its answer")
        question, answer = (_content(f"{source}, field messages", m) for m in messages[-2:])
        return _id(source, row, "uid"), (answer,), _text(source, row, "model"), question
    if "question_id" in row:
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise InputError(f"{source}, field choices: expected a list of {{index, turns}}")
        turns = choices[0].get("turns")
        if not isinstance(turns, list) or not turns:
            raise InputError(f"{source}, field choices: expected turns, a text each")
        said = tuple(_content(f"{source}, field choices", turn) for turn in turns)
        return _id(source, row, "question_id"), said, _text(source, row, "model_id"), None
    raise InputError(
        f"{source}: no answer of {', '.join(FORMATS)}: expected `instruction`, `uid` or "
        "`question_id`"
    )


def _text(source: str, row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InputError(f"{source}, field {field}: expected text, found {value!r:.60}")
    return value


def _id(source: str, row: dict[str, Any], field: str) -> Key:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{source}, field {field}: expected a number or text, found {value!r:.60}")
    return value


def _content(place: str, turn: Any) -> str:
    """The text of a turn: itself, its `content`, or the `answer` in that."""
    for name in ("content", "answer"):
        if isinstance(turn, dict) and name in turn:
            turn = turn[name]
    if not isinstance(turn, str):
        raise InputError(f"{place}: expected text, found {turn!r:.60}")
    return turn
