"""A checkpoint of one process, without a process group: training goes on bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from comal_fast.config.schema import TrainingConfig
from comal_fast.distributed import checkpoint
from comal_fast.optim import Stepper, make_optimizer
from tiny import tiny_model

OPTIONS: dict[str, dict[str, Any]] = {
    "torch": {},
    "float32": {"optimizer_state": "float32"},
    "8bit": {"optimizer_state": "8bit"},
    "host": {"optimizer_offload": True},
    "in backward": {"optimizer_in_backward": True, "max_grad_norm": 0.0},
}


def make(options: dict[str, Any], layout: str) -> tuple[Any, Stepper]:
    model = tiny_model(tie_word_embeddings=layout == "tied")
    if layout == "frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, make_optimizer(trained, TrainingConfig(**options))


def step(model: Any, stepper: Stepper, number: int) -> None:
    ids = torch.randint(0, 261, (2, 9), generator=torch.Generator().manual_seed(number))
    stepper.arm(1e-3, number, last=True)
    model(input_ids=ids, labels=ids).loss.backward()
    stepper.step()


@pytest.mark.parametrize("layout", ["plain", "tied", "frozen"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_goes_on_as_if_nothing_had_happened(kind: str, layout: str, tmp_path: Path) -> None:
    if kind == "8bit" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    model, stepper = make(OPTIONS[kind], layout)
    for number in (0, 1):
        step(model, stepper, number)
    checkpoint.save(tmp_path, model, stepper.inner)
    for number in (2, 3):
        step(model, stepper, number)

    other, resumed = make(OPTIONS[kind], layout)
    for parameter in other.parameters():
        if parameter.requires_grad:  # what is frozen is not in the checkpoint
            parameter.data.normal_()
    checkpoint.load(tmp_path, other, resumed.inner)
    for number in (2, 3):
        step(other, resumed, number)
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_goes_wrong_is_raised_itself(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a write, or a full disk: DCP would hide it in a BaseException."""

    def breaks(*args: object, **kwargs: object) -> None:
        raise error("in the middle")

    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    monkeypatch.setattr(FileSystemWriter, "write_data", breaks)
    with pytest.raises(error, match="in the middle"):
        checkpoint.save(tmp_path, model, optimizer)
