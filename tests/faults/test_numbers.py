"""NaN and infinity are caught where they appear, and can be looked at again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comal_fast.cli import main
from comal_fast.training.trainer import Trainer


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == "train"]


def last(capsys: pytest.CaptureFixture) -> str:
    return str(capsys.readouterr().err.splitlines()[-1])


def test_in_the_first_models_weights(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where no prompt needs them too."""
    shutil.copytree(tiny_folder, tmp_path / "bad")
    weights = load_file(tmp_path / "bad" / "model.safetensors")
    weights["model.embed_tokens.weight"][250, 3] = torch.nan
    save_file(weights, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
    assert main(["run", str(tiny_run), f"model.name_or_path={tmp_path / 'bad'}"]) == 2
    assert (
        "1 numbers of model.embed_tokens.weight are NaN or infinite, the first at (250, 3)"
        in last(capsys)
    )


def test_in_log_probs(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from comal_fast.model import logps

    values = logps._values

    def broken(*given: Any) -> np.ndarray:
        found = values(*given)
        found[0, 1] = np.nan
        return found

    monkeypatch.setattr(logps, "_values", broken)
    assert main(["run", str(tiny_run)]) == 2
    said = last(capsys)
    assert "log-probs: π_" in said and "gives nan for the response " in said


@pytest.fixture
def bad_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From that step on, counted from 0 over the run, the loss is NaN."""

    def set_up(first: int) -> None:
        backward = Trainer._backward

        def broken(self: Trainer, *given: Any) -> dict[str, Tensor]:
            result = backward(self, *given)
            if self.step == first:
                parameter = self.optimizer.parameters[3]
                assert parameter.grad is not None
                parameter.grad.view(-1)[5] = torch.nan
                result["loss"] = result["loss"] * torch.nan
            return result

        monkeypatch.setattr(Trainer, "_backward", broken)

    return set_up


def test_in_a_gradient_it_stops_and_the_step_is_kept(
    tiny_run: Path,
    bad_step: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    bad_step(2)
    assert main(["run", str(tiny_run)]) == 2
    kept = tiny_run.parent / "run/iterations/0001/failed"
    said = last(capsys)
    assert "gradient norm of step 3 in iteration 1 is nan" in said
    assert f"`comal-fast replay {kept}`" in said
    assert main(["replay", str(kept)]) == 0
    page = capsys.readouterr().out
    assert "iteration 1, step 3 of" in page and "the loss is nan" in page
    assert "gradient of model.layers.0" in page and "NaN or infinity" in page
    monkeypatch.undo()
    assert main(["replay", str(kept)]) == 0
    assert "every number is finite here" in capsys.readouterr().out
    assert main(["run", str(tiny_run)]) == 0  # and goes on
    assert main(["replay", str(tiny_run)]) == 2


def test_replay_names_module_and_response(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A layer that overflows for some: which one, and whose row."""
    step = Trainer.optimizer_step

    def overflowing(self: Trainer) -> dict[str, Any]:
        if self.step == 1:
            with torch.no_grad():
                self.model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
        return step(self)

    monkeypatch.setattr(Trainer, "optimizer_step", overflowing)
    assert main(["run", str(tiny_run)]) == 2
    capsys.readouterr()
    assert main(["replay", str(tiny_run.parent / "run/iterations/0001/failed")]) == 0
    page = capsys.readouterr().out
    assert "first output without a number: model.layers.1.mlp" in page
    assert "of samples.parquet: log-prob nan, response '" in page


def test_a_step_is_left_out_and_counted(
    tiny_run: Path, bad_step: Callable[[int], None], capsys: pytest.CaptureFixture
) -> None:
    bad_step(2)
    given = ["run", str(tiny_run), "algorithm.iterations=1", "training.max_skipped_steps=1"]
    assert main(given) == 0
    assert "step 3 left out" in capsys.readouterr().out
    written = rows(tiny_run.parent / "run")
    assert [r["skipped"] for r in written if "skipped" in r] == [1] and "loss" not in written[2]
    model = tiny_run.parent / "run/iterations/0001/model/model.safetensors"
    assert all(bool(x.isfinite().all()) for x in load_file(model).values())
    refused = [*given, "training.optimizer_in_backward=true", "training.max_grad_norm=0"]
    assert main(refused) == 2
    assert "training.max_skipped_steps: 1 with training.optimizer_in_backward" in last(capsys)
