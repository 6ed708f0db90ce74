"""The doctor on this machine, and where something is missing, full or wrong."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from comal_fast.cli import main
from comal_fast.doctor import configuration as configuration_checks
from comal_fast.doctor import machine as machine_checks
from comal_fast.doctor.machine import packages


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["doctor", *arguments, "--json"])
    return status, {f["about"]: f for f in json.loads(capsys.readouterr().out)}


def test_this_machine(capsys: pytest.CaptureFixture[str], tiny_run: Path) -> None:
    """What it says of packages is what is installed, and the tests run on it."""
    import torch

    status, said = found(capsys, str(tiny_run))
    assert status == 0 and not [f for f in said.values() if f["status"] == "bad"]
    assert said["torch"]["text"] in (torch.__version__, torch.__version__.partition("+")[0])
    for package in ("peft", "bitsandbytes", "trl"):
        try:
            assert said[package]["text"].startswith(version(package))
        except PackageNotFoundError:
            assert said[package]["status"] == "note" and "pip install" in said[package]["cure"]
    if not torch.cuda.is_available():
        assert "torch's" in said["log-probs and losses"]["text"]
        assert "sdpa" in said["attention of packed passes"]["text"]
    assert said["data"]["text"] == "10 prompts to train on, 4 held out"
    assert main(["doctor"]) == 0
    assert "nothing keeps a run from working" in capsys.readouterr().out


def test_a_fixed_point_of_another_game(capsys: pytest.CaptureFixture[str], tiny_run: Path) -> None:
    assert "fixed point" not in found(capsys, str(tiny_run))[1]
    status, said = found(capsys, str(tiny_run), "pairing.labels=hard")
    assert status == 0 and said["fixed point"]["status"] == "note"
    assert "majority's game" in said["fixed point"]["text"]


def test_a_package_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = version

    def changed(name: str) -> str:
        if name in ("pyarrow", "peft"):
            raise PackageNotFoundError(name)
        return "5.2.0" if name == "transformers" else real(name)

    monkeypatch.setattr(machine_checks, "version", changed)
    said = {f.about: f for f in packages()}
    assert said["pyarrow"].status == "bad" and "pip install 'pyarrow" in said["pyarrow"].cure
    assert "5.2.0; transformers>=5.17 is required" in said["transformers"].text
    status, all_of_it = found(capsys)
    assert status == 2 and all_of_it["peft"]["status"] == "note"
    assert main(["doctor"]) == 2
    assert "2 problems: pyarrow, transformers" in capsys.readouterr().out


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_disk(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Usage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(configuration_checks.shutil, "disk_usage", lambda path: full)
    status, said = found(capsys, str(tiny_run))
    assert status == 2 and said["disk"]["status"] == "bad"
    assert "0.0 GiB are free" in said["disk"]["text"] and "output_dir" in said["disk"]["cure"]


def test_disk_is_counted(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that has run takes no more than was said, and not a tenth of it."""
    from comal_fast.config import load_config
    from comal_fast.loop import run_all
    from comal_fast.plan.shapes import read_shape
    from comal_fast.runs.listing import disk

    more = ["algorithm.iterations=3"]
    config = load_config(tiny_run, more)
    weights = read_shape(config.model).parameters * 4
    run_all(config)
    took = sum(disk(p)[0] for p in Path(config.output_dir).glob("iterations/*/model"))
    needed = configuration_checks.needed_disk(config)
    assert 3 * weights <= took and 3 * weights < needed < 10 * weights


@pytest.mark.parametrize(
    ("more", "about", "words"),
    [
        (["algorithm.etaa=1"], "configuration", "unknown option algorithm.etaa"),
        (["data.prompts=none.jsonl"], "data", "no such file"),
        (["data.eval_prompts=400"], "data", "400 held-out prompts asked for"),
        (["model.device=cuda"], "device", "no CUDA device is available"),
        (["oracle={name: matrix, game: none.json}"], "oracle", "none.json: no such file"),
        (["training.backend=triton"], "configuration", "needs model.device=cuda"),
        (["model.name_or_path=/nowhere"], "model", "no such folder"),
        (["generation.engine=vllm", "generation.vllm.python=/no/python"], "vLLM", "/no/python"),
    ],
)
def test_a_wrong_configuration(
    more: list[str], about: str, words: str, tiny_run: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    status, said = found(capsys, str(tiny_run), *more)
    assert status == 2
    assert said[about]["status"] == "bad" and words in said[about]["text"]


def test_vllm_in_another_environment(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked of that Python itself; this one has none, and one with such a module has."""
    own = ["generation.engine=vllm", f"generation.vllm.python={sys.executable}"]
    status, said = found(capsys, str(tiny_run), *own)
    try:
        version("vllm")
    except PackageNotFoundError:
        assert status == 2 and "No module named 'vllm'" in said["vLLM"]["text"]
    python = tmp_path / "python"
    (tmp_path / "vllm.py").write_text("__version__ = '9.9'\n")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    status, said = found(capsys, str(tiny_run), own[0], f"generation.vllm.python={python}")
    assert said["vLLM"]["status"] == "good" and said["vLLM"]["text"].startswith("9.9")


def test_a_hub_that_is_away(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named once, with what would come from it; its token is never shown."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_never_shown")
    status, said = found(capsys, str(tiny_run), "model.name_or_path=someone/model")
    assert status == 2 and said["hub"]["status"] == "bad"
    assert "someone/model would come from it" in said["hub"]["text"]
    assert said["hub token"]["status"] == "good" and "hf_never" not in json.dumps(said)
    assert "model" not in said  # it is not tried for a minute as well


def test_names_of_a_hub(tiny_run: Path, tmp_path: Path) -> None:
    from comal_fast.config import load_config

    assert configuration_checks.hub_names(load_config(tiny_run)) == []
    mixed = load_config(
        tiny_run,
        [
            "data.prompts=org/prompts",
            "oracle={name: mixture, members: [{name: bradley_terry, model: org/reward}, "
            "{name: endpoint, base_url: 'http://localhost:1', model: org/served}]}",
        ],
    )
    assert configuration_checks.hub_names(mixed) == ["org/prompts", "org/reward"]
    assert shutil.disk_usage(tmp_path).free > 0
