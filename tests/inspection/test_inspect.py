"""`comal-fast data inspect`: what is shown is what a run is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.context import Context
from comal_fast.inspection.tally import pieces
from tiny import byte_tokenizer

NASTY = "\x00[red]x[/] \u202e\x1b[31m 👩\u200d👧 é ⟦"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["data", "inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_pairs(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"prompt": "Hi", "chosen": "Yes.", "rejected": "No no no."}
    file = write(
        tmp_path / "p.jsonl",
        good,
        {**good, "split": "test", "chosen": "Sí."},
        good,
        {**good, "chosen": "long " * 20},
        {**good, "chosen": "No no no."},
        {**good, "probability": 2},
        {**good, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
    )
    limit = "data.max_length=60"
    status, out, err = inspect(capsys, file, "--model", tiny_folder, "--rows", 1, limit)
    assert status == 2 and err.count("\n") == 1
    assert "a run would refuse 2 of 7 rows, the first:" in err and "line 6, field probab" in err
    assert "⟦<|user|>⟧H│i⟦<|end|>⟧⟦<|assistant|>⟧\n[chosen, trained] Y│e│s│.⟦<|end|>⟧" in out
    assert out.count("refused: ") == 2 and "line 7, field prompt: message 1: " in out

    status, out, _ = inspect(capsys, file, "--model", tiny_folder, limit, "--json")
    told, tokenizer = json.loads(out), byte_tokenizer()
    assert status == 2 and told["kind"] == "pairs"
    counts = [told[name] for name in ("rows", "used", "held_out", "duplicates")]
    assert counts == [7, 2, 1, 1] and list(told["left_out"].values()) == [1, 1]
    assert told["tokens"]["chosen"]["max"] == len(b"Yes.") + 1
    assert sum(told["tokens"]["prompt"]["histogram"]["counts"]) == 2
    first = told["examples"][0]
    assert first["prompt"] == {
        "ids": tokenizer("<|user|>Hi<|end|><|assistant|>")["input_ids"],
        "text": "<|user|>Hi<|end|><|assistant|>",
        "trained": False,
    }
    assert first["rejected"]["text"] == "No no no.<|end|>" and first["rejected"]["trained"]


def test_prompts_are_those_of_a_run(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = inspect(capsys, tiny_run, "--json", "--rows", 99)
    context = Context(load_config(tiny_run))
    run = [*context.training_prompts(1), *context.held_out_prompts()]
    told = [tuple(e["prompt"]["ids"]) for e in json.loads(out)["examples"]]
    assert status == 0 and len(told) == 14 and {tuple(p.ids) for p in run} <= set(told)


def test_pairs_are_those_of_a_run(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"chosen": "Yes.", "rejected": "No.", "margin": 1.0}
    rows = [{"prompt": f"Say {i // 2}.", **answers} for i in range(12)]
    file = write(tiny_run.parent / "pairs.jsonl", *rows, {**rows[0], "chosen": "Yes!"})
    text = tiny_run.read_text()
    data = f"data: {{pairs: {file}, eval_prompts: 2, max_length: 128}}"
    lines = [line for line in text.splitlines() if line.startswith(("output", "model", "training"))]
    config = tiny_run.parent / "pairs.yaml"
    config.write_text("\n".join([*lines, "            max_tokens_per_microbatch: 300}", data, ""]))
    status, out, _ = inspect(capsys, config, "--json", "--rows", 99)
    context = Context(load_config(config))
    run = [*context.training_pairs(1), *context.held_out_pairs()]
    told = json.loads(out)
    assert status == 0 and (told["rows"], told["used"], told["duplicates"]) == (13, 7, 6)
    names = ("prompt", "chosen", "rejected")
    seen = {(*(tuple(e[n]["ids"]) for n in names), e["probability"]) for e in told["examples"]}
    assert seen == {
        (tuple(p.prompt.ids), tuple(p.chosen_ids), tuple(p.rejected_ids), p.probability)
        for p in run
    }


def test_harmless(tmp_path: Path, tiny_folder: Path) -> None:
    """Markup stays text, and nothing in a file controls the terminal."""
    file = write(tmp_path / "p.jsonl", {"prompt": NASTY})
    command = [sys.executable, "-m", "comal_fast", "data", "inspect", file, "--model", tiny_folder]
    for colour in ("0", "1"):
        env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"} if colour == "1" else os.environ
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert "\0" not in done.stdout and "\u202e" not in done.stdout
        assert "\x1b[31m" not in done.stdout and ("\x1b[" in done.stdout) == (colour == "1")
        for text in ("\\x00", "\\u202e", "\\x1b", "👩", "é"):
            assert text in done.stdout
    assert (
        "".join(text for text, _ in pieces(byte_tokenizer(), byte_tokenizer().encode(NASTY)))
        == NASTY
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FILE"], "give --model"),
        (["FILE", "--model", "MODEL", "seed=1"], "seed=1: `data inspect` reads"),
        (["FILE", "--model", "MODEL", "--rows", "-1"], "--rows: -1 is less than 0"),
        (["none.jsonl", "--model", "MODEL"], "none.jsonl: no such file"),
        (["FILE", "--model", "MODEL", "data.pairs=x"], "leave data.prompts and pairs"),
        (["FILE", "--model", "./nowhere"], "nowhere: no such folder"),
        (["EMPTY", "--model", "MODEL"], "no rows in it"),
    ],
)
def test_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, empty = write(tmp_path / "p.jsonl", {"prompt": "Hi"}), write(tmp_path / "e.jsonl")
    names = {"FILE": file, "MODEL": tiny_folder, "EMPTY": empty}
    status, out, err = inspect(capsys, *(names.get(a, a) for a in arguments))
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1
