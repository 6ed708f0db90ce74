"""Rows → conversations: TRL's prompt-only and preference formats, plain and conversational."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any, NamedTuple

from comal_fast.errors import InputError


class Unpaired(InputError):
    """A row whose two texts are no two answers to one prompt; `kind`: how such rows are counted."""

    def __init__(self, place: str, kind: str, advice: str = "") -> None:
        super().__init__(f"{place}: {kind}{advice}")
        self.kind = kind


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str
    extra: str = ""
    """The other keys that a chat template may read (`tool_calls`, `name`, …) as canonical JSON."""

    @property
    def said(self) -> str:
        """All that it says, as a text: the content, then the other keys."""
        return "\n".join(part for part in (self.content, self.extra) if part)

    def to_dict(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content, **json.loads(self.extra or "{}")}


Messages = tuple[Message, ...]
ASKING = ("user", "tool", "function", "ipython")
"""Roles that a response answers."""
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_UNSAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_SAME = "the same text chosen and rejected"
_APART = "the two differ before their last answers, so they do not answer one prompt"
_EXPECTED = "expected text or a list of role and content"


def last_user_text(messages: Messages) -> str:
    """What the user said last; empty where no user spoke."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")


def opened(messages: Messages) -> tuple[Messages, str]:
    """(what comes before the answer, the answer's beginning), "" where it is not begun."""
    if messages and messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    return messages, ""


def answered(messages: Messages, text: str) -> Messages:
    """The conversation with the answer `text`; an answer that is begun goes on with it."""
    before, beginning = opened(messages)
    return (*before, Message("assistant", beginning + text))


def canonical(value: Any) -> str:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def conversation(source: str, value: Any, field: str) -> Messages:
    """The messages of a text (a user's, or a dialogue of Human and Assistant) or of a list.

    A message: `role` and `content`, or ShareGPT's `from` and `value`; content: text or a list of
    parts of text. Raises InputError naming the field.
    """
    if isinstance(value, str):
        if _TURN.match(value):
            return _dialogue(value)
        return (Message("user", value),)
    if not isinstance(value, list):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(f"{source}, field {field}: {_EXPECTED}, found {found}")
    return tuple(_message(f"{source}, field {field}", i, m) for i, m in enumerate(value, 1))


def prompt_of(source: str, row: dict[str, Any]) -> Messages:
    """The conversation that a row asks to be answered; the beginning of an answer comes last.

    Rows of pairs without a prompt have an implicit one, what the two have in common. Raises
    InputError naming line and field.
    """
    if row.get("prompt") is not None:
        return _asked(source, conversation(source, row["prompt"], "prompt"), "prompt")
    return _asked(source, _implicit(source, row, strict=False)[0], "chosen")


def pair(source: str, row: dict[str, Any]) -> tuple[Messages, str, str]:
    """(prompt, chosen, rejected) of a row of TRL's preference format.

    The prompt may end with the beginning of an answer, which both texts go on with. Raises
    InputError naming line and field.
    """
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise InputError(f"{source}: no field `{field}`{_there(row)}")
    if row.get("prompt") is None:
        messages, chosen, rejected = _implicit(source, row, strict=True)
        messages = _asked(source, messages, "chosen")
    else:
        given = _asked(source, conversation(source, row["prompt"], "prompt"), "prompt")
        messages, chosen = _answer(source, given, row["chosen"], "chosen")
        others, rejected = _answer(source, given, row["rejected"], "rejected")
        if messages != others:
            raise InputError(f"{source}, field rejected: another conversation than in chosen")
    if chosen == rejected:
        raise Unpaired(f"{source}, field rejected", _SAME, "; leave the row out")
    return messages, chosen, rejected


def _message(place: str, number: int, value: Any) -> Message:
    if not isinstance(value, dict):
        raise InputError(f"{place}: {_EXPECTED}, message {number} is {value!r:.40}")
    # no calls are as none: some templates leave the content out where they find the key
    rest = {k: x for k, x in value.items() if x is not None and (k, x) != ("tool_calls", [])}
    if "role" not in rest and "from" in rest:
        rest["role"], rest["content"] = rest.pop("from"), rest.pop("value", None)
        if isinstance(rest["role"], str):
            rest["role"] = _SHAREGPT.get(rest["role"], rest["role"])
    role, content = rest.pop("role", None), rest.pop("content", None)
    if not isinstance(role, str) or not role:
        raise InputError(f"{place}: {_EXPECTED}, message {number} has no role")
    if content is None and not any(rest.get(name) for name in _UNSAID):
        raise InputError(f"{place}: {_EXPECTED}, message {number} has no content")
    text = _text(f"{place}: message {number}", "" if content is None else content)
    return Message(role, text, canonical(rest) if rest else "")


def _text(place: str, content: Any) -> str:
    """Of a text, or of a list of parts of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{place}: content is {type(content).__name__}; expected text")
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            if part.get("type", "text") != "text":
                raise InputError(f"{place}: its content has a part {part['type']!r}; text alone")
            parts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InputError(
                f"{place}: its content has a part {kind!r}, and only text can be taken"
            )
    return "".join(parts)


def _asked(source: str, messages: Messages, field: str) -> Messages:
    """The prompt, if something in it asks for an answer."""
    place = f"{source}, field {field}"
    before, beginning = opened(messages)
    if before != messages:
        if said := sorted(set(json.loads(messages[-1].extra or "{}")) & set(_UNSAID)):
            raise InputError(
                f"{place}: it ends with an assistant's {said[0]}; end it with a tool's answer, or "
                "with the beginning of the assistant's own"
            )
        messages = (*before, Message("assistant", beginning)) if beginning.strip() else before
    last = before[-1] if before else Message("", "")
    if last.role not in ASKING or (last.role == "user" and not last.content.strip()):
        raise InputError(
            f"{place}: empty prompt; it must end with a user's text (or a tool's, or with the "
            "beginning of an answer to it)"
        )
    return messages


def _implicit(source: str, row: dict[str, Any], strict: bool) -> tuple[Messages, str, str]:
    """(prompt, chosen, rejected) of two that begin alike; `strict`: both end with an answer."""
    if "chosen" not in row or "rejected" not in row:
        raise InputError(
            f"{source}: no field `prompt` (and no `chosen` with `rejected`){_there(row)}"
        )
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(source, chosen, rejected, strict)
    two = [conversation(source, row[field], field) for field in ("chosen", "rejected")]
    length = 0
    for a, b in zip(*two, strict=False):
        if a != b:
            break
        length += 1
    prompt = two[0][:length]
    if not strict:
        while prompt and prompt[-1].role == "assistant":
            prompt = prompt[:-1]
        return prompt, "", ""
    if two[0] == two[1]:
        raise Unpaired(f"{source}, field rejected", _SAME, "; leave the row out")
    if not length:
        raise InputError(f"{source}, field rejected: it has no prompt in common with chosen")
    answers = [
        _one_answer(source, field, messages[length:])
        for field, messages in zip(("chosen", "rejected"), two, strict=True)
    ]
    return prompt, answers[0], answers[1]


def _implicit_text(
    source: str, chosen: str, rejected: str, strict: bool
) -> tuple[Messages, str, str]:
    """The common beginning, cut back to a whole turn, or else to a whole word."""
    length = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        length += 1
    turns = list(_TURN.finditer(chosen[:length]))
    answers = [b for a, b in pairwise(turns) if (a.group(1), b.group(1)) == ("Human", "Assistant")]
    if answers:
        prompt, end = chosen[: answers[-1].start()], answers[-1].end()
    else:
        prompt = chosen[:length].rpartition(" ")[0]
        end = len(prompt)
    messages = conversation(source, prompt, "chosen")
    if not strict:
        return messages, "", ""
    if chosen == rejected:
        raise Unpaired(f"{source}, field rejected", _SAME, "; leave the row out")
    if not prompt.strip():
        raise InputError(f"{source}, field rejected: it has no prompt in common with chosen")
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if any(turn.group(1) == "Human" for turn in _TURN.finditer(text, end)):
            raise Unpaired(f"{source}, field {field}", _APART)
    return messages, chosen[end:].strip(), rejected[end:].strip()


def _answer(source: str, prompt: Messages, value: Any, field: str) -> tuple[Messages, str]:
    """(prompt, answer) of a text, of the answer as one message, or of the whole conversation."""
    if isinstance(value, str):
        return prompt, value
    messages = conversation(source, value, field)
    before = messages[:-1]
    if before:
        if not _ends_with(before, prompt):
            raise InputError(
                f"{source}, field {field}: expected one assistant message, or the conversation of "
                f"`prompt` with it; found {_roles(messages)}"
            )
        prompt = before
    return prompt, _one_answer(source, field, messages[-1:])


def _ends_with(messages: Messages, prompt: Messages) -> bool:
    """Whether these are the prompt's, but for blanks at ends and messages before all of them."""
    tail = messages[-len(prompt) :]
    return [(m.role, m.content.strip()) for m in tail] == [
        (m.role, m.content.strip()) for m in prompt
    ]


def _one_answer(source: str, field: str, messages: Messages) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InputError(
            f"{source}, field {field}: expected one assistant message after the prompt, found "
            f"{_roles(messages)}"
        )
    if said := sorted(set(json.loads(messages[0].extra or "{}")) & set(_UNSAID)):
        raise InputError(
            f"{source}, field {field}: the answer has {said[0]}, and only its content is trained "
            "on; write it into the content as the model should say it"
        )
    return messages[0].content


def _roles(messages: Messages) -> str:
    return ", ".join(f"{m.role!r:.20}" for m in messages) or "none"


def _dialogue(text: str) -> Messages:
    """The turns of "\\n\\nHuman: … \\n\\nAssistant: …"; an empty one at the end is to be said."""
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        Message(roles[role], content.strip())
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return tuple(turns[:-1] if turns[-1] == Message("assistant", "") else turns)


def _there(row: dict[str, Any]) -> str:
    """What the row has instead."""
    names = ", ".join(f"{name!r:.40}" for name in list(row)[:8])
    return f"; it has {names}" if names else "; it is empty"
