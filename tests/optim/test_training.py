"""The optimiser in whole runs: the same iterates, resumed or not; one line where refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comal_fast.config import load_config
from comal_fast.loop import open_run, run_here
from comal_fast.training.trainer import Diverged, Trainer
from tiny import byte_tokenizer, tiny_model

IN_BACKWARD = ["training.optimizer_in_backward=true", "training.max_grad_norm=0"]
LEAN = [
    *IN_BACKWARD,
    "model.dtype=bfloat16",
    "training.stochastic_rounding=true",
    "training.optimizer_state=8bit",
    "training.optimizer_offload=true",
]


def start(config: Path, output: Path, *options: str) -> Path:
    with open_run(load_config(config, [*options, f"output_dir={output}"])) as context:
        for phase in ("generate", "judge", "pair", "logps", "train"):
            run_here(context, phase, 1)
    return output / "iterations/0001/model"


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def steps(model: Path) -> list[dict[str, Any]]:
    lines = (model.parents[2] / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["phase"] == "train"]
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "mem/"))} for row in rows]


@pytest.mark.parametrize("budget", [300, 10_000])
def test_a_run_stepped_in_the_backward_pass_is_the_plain_run(
    tiny_run: Path, tmp_path: Path, budget: int
) -> None:
    """With several micro-batches a step, and with one."""
    options = ["training.train_batch_size=4", f"training.max_tokens_per_microbatch={budget}"]
    plain = start(tiny_run, tmp_path / "plain", *options, "training.max_grad_norm=0")
    ours = start(tiny_run, tmp_path / "ours", *options, *IN_BACKWARD)
    assert steps(ours) == steps(plain) and len(steps(ours)) > 1
    expected = weights(plain)
    assert all(torch.equal(x, expected[name]) for name, x in weights(ours).items())


@pytest.mark.parametrize("options", [IN_BACKWARD, LEAN], ids=["in backward", "all"])
def test_a_run_cut_short_ends_the_same(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    if options is LEAN:
        pytest.importorskip("bitsandbytes")
    tiny_model(vocab_size=264).save_pretrained(tmp_path / "tiny")  # whole blocks of 256
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    options = [*options, f"model.name_or_path={tmp_path / 'tiny'}"]
    calm = start(tiny_run, tmp_path / "calm", *options)
    took, whole = [], Trainer.optimizer_step

    def cut(trainer: Trainer) -> dict[str, Any]:
        took.append(trainer.step)
        if len(took) == 3:
            raise KeyboardInterrupt
        return whole(trainer)

    monkeypatch.setattr(Trainer, "optimizer_step", cut)
    with pytest.raises(KeyboardInterrupt):
        start(tiny_run, tmp_path / "cut", *options)
    resumed = start(tiny_run, tmp_path / "cut", *options)
    assert took[:4] == [0, 1, 2, 2] and len(steps(resumed)) > 3
    assert steps(resumed) == steps(calm)
    expected = weights(calm)
    assert all(torch.equal(x, expected[name]) for name, x in weights(resumed).items())


def test_a_gradient_that_is_no_number_ends_it_before_an_iterate(
    tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=r"the gradient norm of step \d+ in iteration 1 is nan"):
        start(tiny_run, tmp_path / "run", *IN_BACKWARD, "training.learning_rate=1.0e30")
    assert not (tmp_path / "run/iterations/0001/model").exists()


def test_without_bitsandbytes_8bit_is_refused_at_once(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(
        ValueError, match=r"8bit needs the package bitsandbytes on a CPU; pip install"
    ):
        start(tiny_run, tmp_path / "run", "training.optimizer_state=8bit")
    assert not (tmp_path / "run").exists()
