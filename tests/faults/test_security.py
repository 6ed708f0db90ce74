"""Code that nobody asked for does not run: pickles in checkpoints and weights, a model's own."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from comal_fast.cli import main
from comal_fast.distributed.reading import Planner, Reader
from comal_fast.errors import InputError
from comal_fast.store.artefacts import folder_key, seal_folder
from resume import break_at


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def test_the_bomb_is_one(mark: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


@pytest.fixture
def half_way(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """A command whose run was broken off behind a checkpoint, and the checkpoint."""
    given = ["run", str(tiny_run), "training.save_steps=2"]
    break_at(monkeypatch, 4, KeyboardInterrupt())
    assert main(given) == 130
    monkeypatch.undo()
    return given, tiny_run.parent / "run/iterations/0001/checkpoint"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_checkpoint_with_a_pickle_for_an_index(
    half_way: tuple[list[str], Path], mark: Path, sealed: bool, capsys: pytest.CaptureFixture
) -> None:
    given, folder = half_way
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(mark)))
    if sealed:  # by whoever put it there
        seal_folder(folder, str(folder_key(folder)))
    capsys.readouterr()
    status, said = main(given), capsys.readouterr()
    if sealed:
        last = said.err.splitlines()[-1]
        assert status == 2 and last.startswith(f"comal-fast: error: {folder / '.metadata'}")
        assert "it names pathlib.Path" in last
        shutil.rmtree(folder)
        assert main(given) == 0
    else:
        assert status == 0 and f"{folder / '.metadata'}: damaged" in said.out
    assert not mark.exists()


def test_a_checkpoint_whose_values_are_pickles(tmp_path: Path, mark: Path) -> None:
    dcp.save({"step": Bomb(mark)}, checkpoint_id=tmp_path / "c", no_dist=True)
    with pytest.raises(BaseException, match="(?i)weights.only"):
        dcp.load(
            {"step": 0}, storage_reader=Reader(tmp_path / "c"), planner=Planner(), no_dist=True
        )
    assert not mark.exists()


def test_a_checkpoint_that_names_files_elsewhere(tmp_path: Path) -> None:
    dcp.save({"x": torch.ones(2)}, checkpoint_id=tmp_path / "c", no_dist=True)
    index = tmp_path / "c" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../" + info.relative_path
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"it names '\.\./__0_0\.distcp', outside of"):
        Reader(tmp_path / "c").read_metadata()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_comes_with_a_model(
    tiny_run: Path,
    tiny_folder: Path,
    mark: Path,
    trusted: bool,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tiny_run.parent / "modules"))
    own = tiny_run.parent / "own"
    shutil.copytree(tiny_folder, own)
    (own / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((own / "config.json").read_text())
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (own / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": named}))
    given = [
        "run",
        str(tiny_run),
        f"model.name_or_path={own}",
        f"model.trust_remote_code={str(trusted).lower()}",
    ]
    status = main(given)
    assert status == (0 if trusted else 2) and mark.exists() == trusted
    if not trusted:
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"comal-fast: error: model.name_or_path {own}")
        assert "model.trust_remote_code=true" in last


@pytest.mark.parametrize("asked", [False, True])
def test_weights_that_are_a_pickle(
    tiny_run: Path, tiny_folder: Path, mark: Path, asked: bool, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file

    own = tiny_run.parent / "own"
    shutil.copytree(tiny_folder, own)
    weights = load_file(own / "model.safetensors")
    (own / "model.safetensors").unlink()
    torch.save(weights, own / "pytorch_model.bin")
    given = ["run", str(tiny_run), f"model.name_or_path={own}", "algorithm.iterations=1"]
    given += ["model.pickled_weights=true"] * asked
    assert main(given) == (0 if asked else 2)
    if not asked:
        assert "model.pickled_weights=true" in capsys.readouterr().err.splitlines()[-1]
    torch.save(weights | {"x": Bomb(mark)}, own / "pytorch_model.bin")
    capsys.readouterr()
    assert main(given) == 2
    assert "error: model.name_or_path" in capsys.readouterr().err.splitlines()[-1]
    assert not mark.exists()
