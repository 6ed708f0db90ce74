"""A trainer that can't be entered leaves the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from comal_fast.config import load_config
from comal_fast.config.schema import build
from comal_fast.errors import InputError
from comal_fast.loop import open_run, run_here
from comal_fast.phases import train
from comal_fast.training.trainer import Trainer


@pytest.mark.parametrize("fault", ["refused", "broken"])
def test_attention_is_switched_back(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with open_run(load_config(tiny_run)) as context:
        for phase in ("generate", "judge", "pair", "logps"):
            run_here(context, phase, 1)
        items, sequences = train.load_items(context, 1)
        model = context.policies.take(0)
    config = context.config
    if fault == "refused":  # only a GPU knows how much it has left
        tree = config.model_dump()
        tree["training"]["activation_memory"] = "auto"
        config = build(tree)
    else:
        monkeypatch.setattr("comal_fast.training.trainer.activations", lambda *_: 1 / 0)
    before = model.config._attn_implementation
    trainer = Trainer(config, model, items, sequences, 1)
    with pytest.raises((InputError, ZeroDivisionError)), trainer:
        pass
    assert model.config._attn_implementation == before
    assert not model.training
