"""Answers in the files of outside yardsticks, and other systems' files compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.context import Context
from comal_fast.data.answers import load_questions, read_answers
from comal_fast.data.conversation import Message
from comal_fast.data.tokenize import TokenizedPrompt
from comal_fast.export.answers import answer
from comal_fast.loop import run_all
from comal_fast.phases.generate import sample_table
from comal_fast.store.directory import RunDirectory
from comal_fast.store.shards import Shards

QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "alpaca_eval": [
        {"instruction": "Say one.", "dataset": "koala", "output": "", "generator": "reference"},
        {"instruction": "Say two."},
    ],
    "arena_hard": [
        {"uid": "0a1", "category": "math", "prompt": "Say one."},
        {"uid": "0b", "category": "math", "prompt": "Two?"},
    ],
    "arena_hard-0.1": [{"question_id": "ab12", "turns": [{"content": "Say one."}]}],
    "mt_bench": [
        {"question_id": 81, "category": "writing", "turns": ["Say one.", "Now two."]},
        {"question_id": 82, "category": "math", "turns": ["Say three.", "Now four."]},
    ],
}  # fmt: skip


@pytest.fixture
def ran(tiny_run: Path) -> Path:
    config = load_config(tiny_run, ["algorithm.iterations=1", "training.num_train_epochs=1"])
    run_all(config)
    return Path(config.output_dir)


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}-questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[kind]))
    return path


@pytest.mark.parametrize("kind", list(QUESTIONS))
def test_each_format(kind: str, ran: Path, tmp_path: Path) -> None:
    """Fields and order as the yardsticks have them; read back; the same again to the byte."""
    form, questions = kind.partition("-")[0], written(tmp_path, kind)
    out = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in out:
        command = ["export", "answers", str(ran), str(path), "--format", form, "--name", "ours"]
        assert main([*command, "--questions", str(questions), "generation.max_new_tokens=6"]) == 0
        assert not Path(f"{path}.parts").exists()
    text = out[0].read_text()
    rows = json.loads(text) if form == "alpaca_eval" else list(map(json.loads, text.splitlines()))
    expected = {
        "alpaca_eval": {"instruction", "output", "generator"},
        "arena_hard": {"uid", "ans_id", "model", "messages", "tstamp", "metadata"},
    }.get(kind, {"question_id", "answer_id", "model_id", "choices", "tstamp"})
    for row, question in zip(rows, QUESTIONS[kind], strict=True):
        assert set(row) - {"dataset"} == expected
        for name in ("instruction", "uid", "question_id", "dataset"):
            assert row.get(name) == question.get(name)
    if kind == "arena_hard":
        said = rows[0]["messages"]
        assert [m["role"] for m in said] == ["user", "assistant"]
        assert said[0]["content"] == "Say one." and set(said[1]["content"]) == {"answer"}
    if kind == "arena_hard-0.1":
        assert set(rows[0]["choices"][0]["turns"][0]) == {"content"}
    if kind == "mt_bench":
        assert [len(row["choices"][0]["turns"]) for row in rows] == [2, 2]
    first, second = map(read_answers, map(str, out))
    assert first == second and first.name == "ours"
    assert list(first.turns) == [q.id for q in load_questions(str(questions), form)]


def test_a_later_turn_sees_the_answer_before_it(ran: Path, tmp_path: Path) -> None:
    """By another path: the second turn's answer is that to the whole conversation, asked alone."""
    context = Context(load_config(RunDirectory(ran).config, []))
    questions = load_questions(str(written(tmp_path, "mt_bench")), "mt_bench")
    answers = answer(context, 1, questions, tmp_path / "parts")
    prompts = []
    for q in questions:
        turns = [
            Message("user", q.turns[0]),
            Message("assistant", answers[q.id][0]),
            Message("user", q.turns[1]),
        ]
        ids = context.tokenizer.apply_chat_template(
            [m.to_dict() for m in turns], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        prompts.append(TokenizedPrompt(tuple(turns), ids))
    alone = Shards(tmp_path / "alone", "")
    table, _ = sample_table(context, 1, prompts, 1, "answers 1", "alone", alone)
    assert table["response"].to_pylist() == [answers[q.id][1] for q in questions]
    again = answer(context, 1, questions, tmp_path / "parts")  # from the parts: nothing is sampled
    assert again == answers
    other = answer(context, 0, questions, tmp_path / "parts")  # another policy's are not taken
    assert other != answers


def test_held_out_samples(ran: Path, tmp_path: Path) -> None:
    """Without questions: the run's own, which compare finds again."""
    for iterate in (0, 1):
        out = tmp_path / f"{iterate}.json"
        command = ["export", "answers", str(ran), str(out), "--format", "alpaca_eval"]
        assert main([*command, "--iterate", str(iterate)]) == 0
    samples = RunDirectory(ran).iteration(1).eval_samples.read().to_pylist()
    rows = json.loads((tmp_path / "1.json").read_text())
    assert {r["instruction"]: r["output"] for r in rows} == {
        s["prompt"]: s["response"] for s in reversed(samples)
    }
    assert {row["generator"] for row in rows} == {"run-1"}
    names = [str(tmp_path / f"{i}.json") for i in (0, 1)]
    found = tmp_path / "found.json"
    judge = ["oracle.name=criteria", "oracle.target_words=2"]
    assert main(["compare", *names, *judge, "--json", str(found)]) == 0
    alone = json.loads(found.read_text())
    assert alone["names"] == ["run-0", "run-1"] and alone["n_prompts"] == 4
    assert main(["compare", str(ran), names[0], "--json", str(found)]) == 0
    beside = json.loads(found.read_text())
    assert beside["names"] == ["run-0", "initial", "π_1"]
    arena = tmp_path / "arena.jsonl"
    command = ["export", "answers", str(ran), str(arena), "--format", "arena_hard"]
    assert main(command) == 0
    assert main(["compare", str(arena), names[0], *judge]) == 0  # by the question's text


def test_others_answers_by_the_ids_of_their_questions(ran: Path, tmp_path: Path) -> None:
    questions = written(tmp_path, "mt_bench")
    files = []
    for name, (one, two) in {"wordy": ("one two", "x"), "terse": ("one", "y")}.items():
        rows = [
            {"question_id": q, "model_id": name, "choices": [{"index": 0, "turns": [t, "-"]}]}
            for q, t in ((81, one), (82, two))
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ["oracle={name: criteria, weights: {brief: 1}, target_words: 1}"]
    found = tmp_path / "found.json"
    command = ["compare", *map(str, files), "--questions", str(questions), *judge]
    assert main([*command, "--json", str(found)]) == 0
    result = json.loads(found.read_text())
    assert result["names"] == ["wordy", "terse"] and result["n_prompts"] == 2
    assert result["matrix"][1][0] > 0.5  # the one that is brief, by words
    assert [e["tokens"] for e in sorted(result["entrants"], key=lambda e: e["name"])] == [1.0, 1.5]


def test_bad_input(ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path, "mt_bench")
    (tmp_path / "bad.jsonl").write_text('{"question_id": 1, "turns": []}\n')
    (tmp_path / "none.jsonl").write_text('{"text": "?"}\n')
    answers = tmp_path / "mt.jsonl"
    row = {"question_id": 9, "model_id": "m", "choices": [{"turns": ["x"]}]}
    answers.write_text(json.dumps(row) + "\n")
    out = str(tmp_path / "out.json")
    export = ["export", "answers", str(ran), out, "--format"]
    for arguments, words in (
        ([*export, "mt_bench"], "--questions: MT-Bench asks in turns"),
        ([*export, "alpaca_eval", "generation.top_p=0.5"], "no effect on held-out samples"),
        ([*export, "alpaca_eval", "--iterate", "7"], "has no π_7; there are 0, 1"),
        ([*export, "mt_bench", "--questions", str(tmp_path / "bad.jsonl")], "field turns"),
        ([*export, "alpaca_eval", "--questions", str(good)], "field instruction: expected text"),
        (
            [*export, "mt_bench", "--questions", str(good), "data.max_length=20"],
            "exceeds data.max_length=20",
        ),
        (["compare", str(answers), str(ran)], "does not hold the text of question 9"),
        (["compare", str(tmp_path / "none.jsonl"), str(ran)], "no answer of alpaca_eval"),
        (["compare", str(answers), str(answers)], "files alone have no judge"),
        (["compare", str(ran), "--questions", str(good)], "no effect without a file of answers"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
        assert not Path(out).exists()
