"""Rows as conversations: preference pairs in every format, tools, beginnings of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.config.schema import DataConfig
from comal_fast.context import Context
from comal_fast.data.conversation import Message, Messages, answered, conversation, opened, pair
from comal_fast.data.prompts import load_prompts
from comal_fast.errors import InputError
from comal_fast.model.judge import conversation_ids
from comal_fast.oracles import conversations
from comal_fast.store.directory import RunDirectory
from tiny import byte_tokenizer

U, S = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
MORE = {"role": "user", "content": "And?"}
HI = (Message("user", "Hi"),)
LONG = (*HI, Message("assistant", "Yes."), Message("user", "And?"))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
HH = "\n\nHuman: Hi\n\nAssistant:"
TEMPLATE = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t.function.name }}{% endfor %}<|end|>"
    "{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.x }}]"
    "{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ start or '' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, HI),
        ({"prompt": [U], "chosen": [YES], "rejected": [NO]}, HI),
        ({"prompt": [U], "chosen": "Yes.", "rejected": [NO]}, HI),
        ({"prompt": "Hi", "chosen": [U, YES], "rejected": [U, NO]}, HI),
        ({"prompt": " Hi\n", "chosen": [U, YES], "rejected": [U, NO]}, HI),
        ({"chosen": [U, YES], "rejected": [U, NO]}, HI),
        ({"chosen": [U, YES, MORE, YES], "rejected": [U, YES, MORE, NO]}, LONG),
        (
            {"prompt": "Hi", "chosen": [S, U, YES], "rejected": [S, U, NO]},
            (Message("system", "Be brief."), *HI),
        ),
        ({"chosen": f"{HH} Yes.", "rejected": f"{HH} No."}, HI),
        ({"prompt": HH, "chosen": "Yes.", "rejected": "No."}, HI),
        (
            {"chosen": f"{HH} Yes.\n\nHuman: And?\n\nAssistant: Yes.",
             "rejected": f"{HH} Yes.\n\nHuman: And?\n\nAssistant: No."},
            LONG,
        ),
        ({"chosen": "Hi Yes.", "rejected": "Hi No."}, HI),
    ],
)  # fmt: skip
def test_pairs(row: dict[str, Any], prompt: Messages) -> None:
    assert pair("p, line 1", row) == (prompt, "Yes.", "No.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "chosen": "Yes."}, "no field `rejected`; it has 'prompt', 'chosen'"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "field rejected: the same text"),
        (
            {"chosen": [U, YES], "rejected": [U, YES]},
            "field rejected: the same text chosen and rejected",
        ),
        ({"chosen": f"{HH} a", "rejected": f"{HH} a"}, "field rejected: the same text"),
        ({"chosen": "Yes.", "rejected": "No."}, "field chosen: empty prompt|no prompt in common"),
        ({"chosen": [U, YES], "rejected": [S, NO]}, "field rejected: it has no prompt in common"),
        ({"chosen": [U, YES], "rejected": [U]}, "field rejected: expected one .* found none"),
        ({"chosen": [U, YES, MORE, YES], "rejected": [U, NO]}, "field chosen: expected one"),
        ({"prompt": [U], "chosen": [YES, MORE], "rejected": [NO]}, "field chosen: expected one"),
        ({"prompt": [U], "chosen": [U], "rejected": [NO]}, "field chosen: .* found 'user'"),
        ({"prompt": [U], "chosen": [MORE, YES], "rejected": [NO]}, "the conversation of `prompt`"),
        ({"prompt": [U], "chosen": [S, U, YES], "rejected": [NO]}, "another conversation"),
        ({"prompt": "Hi", "chosen": {"a": 1}, "rejected": "b"}, "field chosen: .*found dict"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, "field chosen: .*found int"),
        (
            {"prompt": "Hi", "chosen": "b", "rejected": [{**NO, "tool_calls": [CALL]}]},
            "field rejected: the answer has tool_calls",
        ),
        (
            {"chosen": f"{HH} a\n\nHuman: b\n\nAssistant: c", "rejected": f"{HH} d"},
            "field chosen: the two differ before their last answers",
        ),
    ],
)
def test_what_is_no_pair(row: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^p, line 1.*({words})") as caught:
        pair("p, line 1", row)
    assert "\n" not in str(caught.value)


def test_other_keys() -> None:
    """They are kept in an order of their own, so that the same message is the same."""
    (none,) = conversation("p", [{**YES, "tool_calls": []}], "prompt")
    assert none == Message("assistant", "Yes.")
    one = {"role": "tool", "name": "f", "content": "7", "tool_call_id": "1", "weight": None}
    two = {"tool_call_id": "1", "role": "tool", "content": [{"text": "7"}], "name": "f"}
    (first,), (second,) = (conversation("p", [m], "prompt") for m in (one, two))
    assert first == second and hash(first) == hash(second)
    assert first.to_dict() == {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"}
    assert first.said == '7\n{"name":"f","tool_call_id":"1"}'


def test_beginnings() -> None:
    begun = (*HI, Message("assistant", "Well, "))
    assert opened(begun) == (HI, "Well, ") and opened(HI) == (HI, "")
    assert answered(begun, "no.") == (*HI, Message("assistant", "Well, no."))
    row = {"prompt": [U, {**YES, "content": "Well, "}], "chosen": "yes.", "rejected": [NO]}
    assert pair("p", row) == (begun, "yes.", "No.")
    assert pair("p", {**row, "prompt": [U, {**YES, "content": " "}]})[0] == HI


def test_what_a_row_says_to_the_template(tmp_path: Path) -> None:
    rows = [
        {"prompt": [U]},
        {"prompt": [U], "tools": TOOLS},
        {"prompt": [U], "tools": json.dumps(TOOLS), "chat_template_kwargs": {"start": "B"}},
        {"prompt": [U], "tools": [], "chat_template_kwargs": "{}"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(prompts=str(path), chat_template_kwargs={"start": "A", "x": [1, None]})
    given = [(p.tools, json.loads(p.template_kwargs)) for p in load_prompts(data)]
    tools = json.dumps(TOOLS, separators=(",", ":"), sort_keys=True)
    a, b = {"start": "A", "x": [1, None]}, {"start": "B", "x": [1, None]}
    assert given == [("", a), (tools, a), (tools, b)]


def test_a_run(tiny_run: Path, tiny_folder: Path) -> None:
    """All of a conversation is in tokens and samples; what is begun is gone on with."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    folder = tiny_run.parent / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(folder)
    turns = [U, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    answer = {"role": "tool", "name": "f", "content": "7"}
    rows = [{"prompt": [*turns, {**answer, "content": str(i)}]} for i in range(8)]
    rows += [{"prompt": [U, {"role": "assistant", "content": f"Well {i}, "}]} for i in range(8)]
    prompts = tiny_run.parent / "odd.jsonl"
    prompts.write_text("".join(json.dumps({**row, "tools": TOOLS}) + "\n" for row in rows))
    options = [
        f"model.name_or_path={folder}", f"data.prompts={prompts}", "algorithm.iterations=1",
        "data.prompts_per_iteration=null", "data.chat_template_kwargs.start=Z",
    ]  # fmt: skip
    assert main(["run", str(tiny_run), *options]) == 0
    config = load_config(tiny_run, options)
    samples = RunDirectory(config.output_dir).iteration(1).samples.read()
    held = {p.messages for p in Context(config).held_out_prompts()}
    start, user = "<|system|>f<|end|>", "<|user|>Hi<|end|><|assistant|>"
    for row, messages in zip(samples.to_pylist(), conversations(samples), strict=True):
        text, said = tokenizer.decode(row["prompt_ids"]), messages[-1]
        response = tokenizer.decode(row["response_ids"], skip_special_tokens=True)
        assert messages not in held or said.role == "user"
        if said.role == "tool":
            assert text == f"{start}{user}[f 1]<|end|><|tool|>{said.content}<|end|><|assistant|>Z"
            call = json.loads(messages[1].extra)
            assert call == {"tool_calls": [CALL]} and said.extra == '{"name":"f"}'
            assert row["response"] == response
        else:
            assert messages == HI and text.startswith(f"{start}{user}Well ")
            begun = text.removeprefix(f"{start}{user}")
            assert row["response"] == begun + response


def test_judges_see_other_keys() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    asked = (
        *HI,
        Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
        Message("tool", "7"),
    )
    text = "<|user|>Hi<|end|><|assistant|>[f 1]<|end|><|tool|>7<|end|><|assistant|>No.<|end|>"
    assert tokenizer.decode(conversation_ids(tokenizer, asked, "No.")) == text


def test_samples_of_earlier_versions() -> None:
    """Without other keys, and without conversations."""
    import pyarrow as pa

    two = pa.table({"prompt": ["Hi"], "messages": [[{"role": "user", "content": "Hi"}]]})
    assert conversations(two) == conversations(pa.table({"prompt": ["Hi"]})) == [HI]
