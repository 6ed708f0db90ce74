"""`ProxTrainer` on two ranks: the steps of one process with batches twice as large."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import torchrun
from tiny import byte_tokenizer, tiny_model

pytest.importorskip("trl")
NAMES = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy", "num_tokens")


def train(folder: Path, batch: int) -> list[dict[str, float]]:
    from datasets import Dataset

    from comal_kernels.integrations.trl import ProxConfig, ProxTrainer

    rows = [{"prompt": f"{i}?", "chosen": " yes" * (i % 3 + 1), "rejected": " no"}
            for i in range(24)]  # fmt: skip
    config = ProxConfig(
        str(folder / "out"),
        prox="inpo",
        eta=0.05,
        tau_eta_ratio=0.3,
        per_device_train_batch_size=batch,
        max_steps=6,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = ProxTrainer(
        tiny_model(), args=config, train_dataset=Dataset.from_list(rows), ref_model=tiny_model(),
        processing_class=byte_tokenizer(),
    )  # fmt: skip
    trainer.train()
    found: list[dict[str, Any]] = trainer.state.log_history
    return [row for row in found if "loss" in row]


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    done = torchrun(Path(__file__), tmp_path)
    assert done.returncode == 0, done.stderr
    ours, alone = json.loads((tmp_path / "0.json").read_text()), train(tmp_path / "alone", 4)
    assert len(ours) == len(alone) == 6
    for a, b in zip(ours, alone, strict=True):
        for name in NAMES:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)


if __name__ == "__main__":
    import os

    place, rank = Path(sys.argv[1]), os.environ["RANK"]
    (place / f"{rank}.json").write_text(json.dumps(train(place, 2)))
