"""What is conditioned on and what is trained on, written out by hand for the templates in use."""

from __future__ import annotations

import pytest

from chat import chat_tokenizer, ids_by_hand
from comal_fast.config.schema import DataConfig, ModelConfig
from comal_fast.data.conversation import Message, Messages
from comal_fast.data.prompts import Prompt
from comal_fast.data.template import answer_ids, end_of_turn, prompt_ids
from comal_fast.data.tokenize import tokenize_prompts
from comal_fast.errors import InputError
from comal_fast.model.load import load_tokenizer
from comal_fast.model.stored import stop_token_ids
from tiny import byte_tokenizer, tiny_model

ONE = (Message("user", "Hi"),)
TWO = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", " Why? "))
SYSTEM = (Message("system", "Be brief."), Message("user", "Hi"))
BEGUN = (Message("user", "Hi"), Message("assistant", "Well, "))
H, E = "<|start_header_id|>", "<|end_header_id|>\n\n"
DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
NO_THOUGHT = "<think>\n\n</think>\n\n"
OFF = '{"enable_thinking":false}'
# template, template_kwargs, conversation, answer, what is conditioned on, what is trained on
TABLE: list[tuple[str, str, Messages, str, str, str]] = [
    (
        "llama_3", "", ONE, "No. ",
        f"<|begin_of_text|>{H}user{E}Hi<|eot_id|>{H}assistant{E}",
        "No.<|eot_id|>",
    ),
    (
        "llama_3", "", TWO, "No.",
        f"<|begin_of_text|>{H}user{E}Hi<|eot_id|>{H}assistant{E}Yes?<|eot_id|>"
        f"{H}user{E}Why?<|eot_id|>{H}assistant{E}",
        "No.<|eot_id|>",
    ),
    (
        "llama_3", "", BEGUN, "no.",
        f"<|begin_of_text|>{H}user{E}Hi<|eot_id|>{H}assistant{E}Well,",
        " no.<|eot_id|>",
    ),
    (
        "llama_3_2", "", ONE, "No.",
        f"<|begin_of_text|>{H}system{E}{DATE}<|eot_id|>{H}user{E}Hi<|eot_id|>{H}assistant{E}",
        "No.<|eot_id|>",
    ),
    (
        "llama_3_2", '{"date_string":"1 May 2031"}', SYSTEM, "No.",
        f"<|begin_of_text|>{H}system{E}Cutting Knowledge Date: December 2023\nToday Date: "
        f"1 May 2031\n\nBe brief.<|eot_id|>{H}user{E}Hi<|eot_id|>{H}assistant{E}",
        "No.<|eot_id|>",
    ),
    (
        "qwen2_5", "", ONE, "No.",
        f"{QWEN}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "No.<|im_end|>",
    ),
    (
        "qwen2_5", "", SYSTEM, "\n No. ",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        "\n No. <|im_end|>",
    ),
    (
        "qwen2_5", "", BEGUN, "no.",
        f"{QWEN}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, ",
        "no.<|im_end|>",
    ),
    (
        "qwen3", "", ONE, "No.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        f"{NO_THOUGHT}No.<|im_end|>",
    ),
    (
        "qwen3", "", TWO, "<think>Hm.</think>No.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n",
        "<think>\nHm.\n</think>\n\nNo.<|im_end|>",
    ),
    (
        "qwen3", OFF, TWO, "No.",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        f"<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n{NO_THOUGHT}",
        "No.<|im_end|>",
    ),
    ("mistral", "", ONE, "No.", "<s>[INST] Hi[/INST]", " No.</s>"),
    (
        "mistral", "", TWO, "No.",
        "<s>[INST] Hi[/INST] Yes?</s>[INST]  Why? [/INST]", " No.</s>",
    ),
    (
        "gemma_2", "", ONE, "No.",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "No.<end_of_turn>",
    ),
    (
        "gemma_2", "", TWO, "No.",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        "No.<end_of_turn>",
    ),
    (
        "smollm2", "", TWO, "",
        f"{SMOL}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    (
        "smollm2", "", SYSTEM, "No.",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        "No.<|im_end|>",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "messages", "answer", "given", "trained"), TABLE)
def test_table(
    name: str, kwargs: str, messages: Messages, answer: str, given: str, trained: str
) -> None:
    tokenizer, prompt = chat_tokenizer(name), Prompt(messages, "p, line 1", template_kwargs=kwargs)
    expected = ids_by_hand(name, given), ids_by_hand(name, trained)
    assert answer_ids(tokenizer, prompt, answer) == expected
    assert prompt_ids(tokenizer, prompt) == expected[0]
    assert end_of_turn(tokenizer)[1] == 1 and expected[1][-1] == 1


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("gemma_2", SYSTEM, r"line 1: .*System role not supported.*leave data\.system_prompt out"),
        ("gemma_2", (*ONE, *ONE), r"line 1: .*roles must alternate"),
        ("mistral", SYSTEM, r"line 1: .*otherwise once it is answered: 'Be brief.*system message"),
    ],
)
def test_refused(name: str, messages: Messages, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        answer_ids(chat_tokenizer(name), Prompt(messages, "p, line 1"), "No.")
    assert "\n" not in str(caught.value)


def test_thoughts_that_are_taken_away() -> None:
    tokenizer = chat_tokenizer("qwen3")
    start = "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking"
    thinking = start.replace("assistant\\n", "assistant\\n<think>\\n")
    template = tokenizer.chat_template.replace("(loop.last or thought)", "false")
    tokenizer.chat_template = template.replace(start, thinking)
    with pytest.raises(InputError, match=r"data\.chat_template_kwargs=\{enable_thinking: false\}"):
        answer_ids(tokenizer, Prompt(ONE, "p, line 1"), "No.")


def test_letters_joined_across_the_border() -> None:
    """The prompt's tokens are those that sampling starts from, whatever the answer begins with."""
    tokenizer = chat_tokenizer("smollm2", ("Ċ", "Ċ"))
    prompt = Prompt(ONE, "p, line 1")
    before, after = answer_ids(tokenizer, prompt, "\n\nNo.")
    assert before == prompt_ids(tokenizer, prompt)
    assert tokenizer.decode(after) == "\n\nNo.<|im_end|>"
    whole = tokenizer.decode(before + after)
    assert tokenizer(whole, add_special_tokens=False)["input_ids"] != before + after


@pytest.mark.parametrize(
    ("template", "tail", "end"),
    [
        (
            "{% for m in messages %}{{ m.content }}<|end|> <|pad|>{% endfor %}",
            "<|end|>",
            "<|end|>",
        ),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "", "<|user|>"),
    ],
)
def test_ends_of_turns(template: str, tail: str, end: str) -> None:
    """The template's own token, nothing after it; where it writes none, the end of text."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "<|user|>", template
    _, after = answer_ids(tokenizer, Prompt(ONE, "p"), "No.")
    assert tokenizer.decode(after).endswith(f"No.{end}")
    model = tiny_model(eos_token_id=2)
    stops = {tokenizer.convert_tokens_to_ids(t) for t in ("<|user|>", end)}
    assert set(stop_token_ids(model.generation_config, tokenizer)) == stops
    assert end_of_turn(tokenizer)[1] == (tokenizer.convert_tokens_to_ids(tail) if tail else None)


@pytest.mark.parametrize("day", ["2024-07-26", "2031-01-02"])
def test_dates(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the configuration, as Python would write them, whatever the day."""
    from datetime import date

    codes = "%d %b %Y %A %B %-d %e %y %j %m/%d %H:%M"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% set f = strftime_now %}{% for m in messages %}{{ m.content }}"
        f"{{{{ f('{codes}') }}}}{{% endfor %}}"
    )
    ids = prompt_ids(tokenizer, Prompt(ONE, "p", date=day))
    assert tokenizer.decode(ids) == "Hi" + date.fromisoformat(day).strftime(codes)


def test_options_of_the_template() -> None:
    tokenizer = chat_tokenizer("qwen3")
    with pytest.raises(InputError, match="has no variable enable_thinkin$"):
        data = DataConfig(chat_template_kwargs={"enable_thinkin": False})
        tokenize_prompts([Prompt(ONE, "p")], tokenizer, data, 1)
    with pytest.raises(InputError, match="line 1, field chat_template_kwargs: tokenize is no"):
        prompt_ids(tokenizer, Prompt(ONE, "p, line 1", template_kwargs='{"tokenize":true}'))
    gemma, data = chat_tokenizer("llama_3"), DataConfig(system_prompt="Be brief.")
    gemma.chat_template = gemma.chat_template.replace("in messages", "in messages[1:]")
    with pytest.raises(InputError, match=r"data\.system_prompt: .* does not write it"):
        tokenize_prompts([Prompt(SYSTEM, "p")], gemma, data, 1)


def test_the_same_tokens_are_one_prompt() -> None:
    """Held out where one of them is."""
    tokenizer, data = chat_tokenizer("llama_3"), DataConfig()
    splits = (None, None, "test", None)
    said = [(Message("user", "Hi" + " " * i),) for i in range(4)]
    alike = [
        Prompt(m, f"{i}", split) for i, (m, split) in enumerate(zip(said, splits, strict=True))
    ]
    tokenized, prompts, left_out = tokenize_prompts(alike, tokenizer, data, 1)
    assert len(tokenized) == 1 and not left_out
    assert [(p.source, p.held_out) for p in prompts] == [("0", True)]


def test_the_fixture_is_as_published(smollm2: ModelConfig) -> None:
    real, ours = load_tokenizer(smollm2), chat_tokenizer("smollm2")
    for messages in (ONE, TWO, SYSTEM, BEGUN):
        prompt = Prompt(messages, "p")
        texts = [[t.decode(i) for i in answer_ids(t, prompt, "No.")] for t in (real, ours)]
        assert texts[0] == texts[1]
