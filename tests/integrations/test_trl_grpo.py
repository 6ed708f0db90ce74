"""GRPO by TRL with this library's log-probs, against TRL's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import byte_tokenizer, tiny_model

pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from comal_kernels.integrations.trl import fuse_grpo  # noqa: E402


def trainer(folder: Path, **more: Any) -> Any:
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        max_steps=5,
        learning_rate=1e-3,
        temperature=0.8,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    model = tiny_model()
    model.save_pretrained(folder / "start")
    model.config._name_or_path = str(folder / "start")
    rows = Dataset.from_list([{"prompt": f"count to {i}"} for i in range(8)])
    return GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(c.count("e") + len(c)) for c in completions],
        args=config,
        train_dataset=rows,
        processing_class=byte_tokenizer(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"beta": 0.1}, {"cast_lm_head_to_fp32": True}])
def test_grpo_follows_trl(more: dict[str, Any], tmp_path: Path) -> None:
    histories = []
    for fused in (False, True):
        made = trainer(tmp_path, **more)
        if fused:
            made = fuse_grpo(made)
        torch.manual_seed(7)
        made.train()
        histories.append([row for row in made.state.log_history if "loss" in row])
    assert len(histories[0]) == 5
    for theirs, ours in zip(*histories, strict=True):
        for name in ("loss", "entropy", "grad_norm", "reward"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_another_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match="^trainer: a object; expected a GRPOTrainer"):
        fuse_grpo(object())
