"""Answers of other systems, in the files of outside yardsticks, as entrants of a round robin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from comal_fast.compare.entrants import Held
from comal_fast.config import Config
from comal_fast.config.load import apply_override
from comal_fast.config.schema import build
from comal_fast.data.answers import FORMATS, Answers, load_questions, read_answers
from comal_fast.data.conversation import last_user_text
from comal_fast.errors import InputError
from comal_fast.oracles import Message, conversations
from comal_fast.store.artefacts import Table

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def is_answers(name: str) -> bool:
    """Whether the argument names a file of answers, and no run directory."""
    return name.endswith(SUFFIXES)


def held_of(
    files: Sequence[str], questions: str | None, samples: Mapping[str, Table]
) -> dict[str, Held]:
    """Entrant → first turns by the question's text, lengths in words: of `files`, then of runs.

    questions: the file of Arena-Hard 0.1 or MT-Bench whose ids the answers have. Of runs those
    prompts are left that are one message of a user. InputError for answers without their question.
    """
    asked = _asked(questions) if questions else {}
    found: dict[str, Held] = {}
    for path in files:
        answers = read_answers(path)
        name = answers.name if answers.name not in found else Path(path).name
        if name in found:
            raise InputError(f"{path}: a second file of {answers.name}; rename one")
        found[name] = _held(path, answers, asked)
    return found | {name: _single(table) for name, table in samples.items()}


def judge_of(overrides: Sequence[str]) -> Config:
    """A configuration of these `oracle.NAME=value` alone. InputError where there are none."""
    if not overrides:
        raise InputError(
            "compare: files alone have no judge; give oracle.name=… with its options, or a run "
            "directory"
        )
    tree: dict[str, object] = {"model": {"name_or_path": "none"}}
    for text in overrides:
        apply_override(tree, text)
    return build(tree)


def _asked(path: str) -> dict[int | str, str]:
    why = ""
    for form in reversed(FORMATS):
        try:
            return {q.id: q.turns[0] for q in load_questions(path, form)}
        except InputError as error:
            why = why or str(error)
    raise InputError(why)


def _held(path: str, answers: Answers, asked: Mapping[int | str, str]) -> Held:
    held: Held = {}
    for key, turns in answers.turns.items():
        text = answers.asked.get(key, asked.get(key))
        if text is None:
            raise InputError(
                f"{path}: it does not hold the text of question {key!r:.40}; give its file by "
                "--questions"
            )
        held[text] = ((Message("user", text),), [turns[0]], len(turns[0].split()))
    return held


def _single(table: Table) -> Held:
    held: Held = {}
    samples = table.read()
    for response, messages in zip(
        samples["response"].to_pylist(), conversations(samples), strict=True
    ):
        if [m.role for m in messages if m.role != "system"] == ["user"]:
            text, words = last_user_text(messages), len(response.split())
            _, responses, before = held.get(text, (messages, [], 0))
            held[text] = (messages, [*responses, response], before + words)
    return held
