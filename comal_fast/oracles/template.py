"""What a judge of pairs is asked, and how its answer begins: presets, or a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from comal_fast.config.oracle import PRESETS
from comal_fast.data.conversation import Messages, last_user_text
from comal_fast.errors import InputError

_PLACE = re.compile(r"\{([a-z_]+)\}")
_PLACES = ("conversation", "prompt", "response_a", "response_b", "criteria")
_ANSWERS = {"offsetbias": (("a", "b"), "Output (")}
_NAMES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


@dataclass(frozen=True)
class Template:
    """A question about two responses: its text, the two labels, and what comes before a label."""

    text: str
    labels: tuple[str, str]
    answer: str
    criteria: str = ""

    @property
    def key(self) -> list[object]:
        """All that it says, for what tells answers."""
        return [self.text, self.labels, self.answer, self.criteria]

    def fill(self, messages: Messages, first: str, second: str) -> str:
        """The question; what stands in braces inside the texts themselves stays as it is."""
        values: Mapping[str, str] = {
            "conversation": conversation_text(messages),
            "prompt": last_user_text(messages),
            "response_a": first,
            "response_b": second,
            "criteria": self.criteria,
        }
        return _PLACE.sub(lambda place: values[place.group(1)], self.text)


def load_template(
    name: str, labels: Sequence[str] | None, answer: str | None, criteria: str | None
) -> Template:
    """The template of that name or file. Raises InputError for one that does not show both."""
    if name in PRESETS:
        text = (files("comal_fast.oracles") / "templates" / f"{name}.txt").read_text("utf-8")
    else:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"oracle.template {name}: can't be read ({error}); give one of "
                f"{', '.join(PRESETS)} or a text file"
            ) from None
    named = set(_PLACE.findall(text))
    if unknown := sorted(named - set(_PLACES)):
        known = ", ".join(f"{{{place}}}" for place in _PLACES)
        raise InputError(
            f"oracle.template {name}: no such place {{{unknown[0]}}}; there is {known}"
        )
    lacking = [place for place in ("response_a", "response_b") if place not in named]
    if not named & {"conversation", "prompt"}:
        lacking.append("conversation")
    if lacking:
        raise InputError(f"oracle.template {name}: {{{lacking[0]}}} is not in it")
    if ("criteria" in named) != (criteria is not None):
        lack = "give them as oracle.criteria" if criteria is None else "leave oracle.criteria out"
        state = "asks for {criteria}" if criteria is None else "has no {criteria}"
        raise InputError(f"oracle.template {name}: it {state}; {lack}")
    own_labels, own_answer = _ANSWERS.get(name, (("A", "B"), ""))
    first, second = labels or own_labels
    if first == second or not (first and second):
        raise InputError(f"oracle.labels: {first!r} and {second!r}; give two that differ")
    answer = own_answer if answer is None else answer
    return Template(text.rstrip("\n"), (first, second), answer, criteria or "")


def conversation_text(messages: Messages) -> str:
    """A conversation as a judge reads it: a lone user message as it is, else who said what."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{_NAMES.get(m.role, m.role)}: {m.said}" for m in messages)
