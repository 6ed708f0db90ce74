"""`init` → `run`, by each kind of model source, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.init.command import complete
from comal_fast.plan.check import check_fits

SMALL = [
    "algorithm.iterations=1", "data.eval_prompts=2", "generation.max_new_tokens=6",
    "generation.num_generations=2", "training.save_minutes=0", "evaluation.report=false",
    "evaluation.bootstrap=100",
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "Say {i}."}}\n' for i in range(12)))
    return file


def test_a_folder(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    given = ["--model", str(tiny_folder), "--prompts", str(prompts), "--gpu-memory", "cpu"]
    assert main(["init", str(file), *given, "--output", str(tmp_path / "run")]) == 0
    assert main(["doctor", str(file)]) == 0
    assert main(["run", str(file), *SMALL]) == 0
    assert (tmp_path / "run/summary.json").is_file()
    assert load_config(file).data.eval_prompts == 2  # a fifth of twelve


@pytest.mark.slow
def test_a_hub_name(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    """From the hub's cache, as it lies there once fetched."""
    snapshot = tmp_path / "hf/hub/models--someone--tiny/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    file = tmp_path / "first.yaml"
    given = ["--model", "someone/tiny", "--prompts", str(prompts), "--gpu-memory", "cpu"]
    for command in (["init", str(file), *given], ["run", str(file), *SMALL]):
        done = subprocess.run(
            [sys.executable, "-m", "comal_fast", *command], capture_output=True, text=True,
            env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/first/summary.json").is_file()


@pytest.mark.slow
def test_a_package(smollm2: Any, tmp_path: Path) -> None:
    """Its only GGUF file is found."""
    file = tmp_path / "first.yaml"
    given = ["--model", smollm2.name_or_path, "--gpu-memory", "cpu"]
    assert main(["init", str(file), *given, "--output", str(tmp_path / "run")]) == 0
    assert load_config(file).model.gguf_file == smollm2.gguf_file
    assert main(["run", str(file), *SMALL, "data.prompts_per_iteration=2"]) == 0


@pytest.mark.parametrize("memory", ["24GiB", "80GiB"])
def test_what_it_writes_for_a_gpu_fits_it(memory: str, tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    given = ["--model", "meta-llama/Meta-Llama-3-8B-Instruct", "--gpu-memory", memory]
    assert main(["init", str(file), *given, "--oracle", "bradley_terry:some/reward"]) == 0
    config = load_config(file)
    assert config.oracle.model_dump()["model"] == "some/reward"
    check_fits(config, float(memory.removesuffix("GiB")) * 2**30)


def test_questions_are_asked_for_what_is_missing() -> None:
    asked = []

    def ask(question: str, default: str | None) -> str:
        asked.append(default)
        return "" if default else "some/model"

    none = dict.fromkeys(("model", "prompts", "oracle", "gpu_memory", "output"))
    answers = complete({**none, "prompts": "p.jsonl"}, ask, "mine")
    assert asked == [None, "criteria", "auto", "runs/mine"]
    assert answers == {
        "model": "some/model", "prompts": "p.jsonl", "oracle": "criteria",
        "gpu_memory": "auto", "output": "runs/mine",
    }  # fmt: skip


def test_bad_answers(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "first.yaml"
    good = ["--model", str(tiny_folder), "--prompts", str(prompts), "--gpu-memory", "cpu"]
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    large = ["--model", "meta-llama/Meta-Llama-3-70B-Instruct", "--gpu-memory", "16GiB"]
    for more, words in (
        (good[2:], "--model: missing"),
        ([*good, "--oracle", "bradley_terry"], "give bradley_terry:MODEL"),
        ([*good, "--oracle", "nobody"], "expected one of criteria, bradley_terry"),
        ([*good, "--oracle", "criteria:x"], "criteria take no model"),
        ([*good[:2], "--prompts", str(few), *good[4:]], "it takes 3 or more"),
        (large, "does not fit 16 GiB"),
        (["--model", "package:no_such_package"], "is not installed"),
    ):
        assert main(["init", str(file), *more]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
        assert not file.exists()
    file.write_text("mine")
    assert main(["init", str(file), *good]) == 2
    assert "--force" in capsys.readouterr().err and file.read_text() == "mine"
    assert main(["init", "first.txt", *good]) == 2
