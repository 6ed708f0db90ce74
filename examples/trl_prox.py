"""INPO, or any prox loss, by TRL: `ProxTrainer` in the place of its DPOTrainer.

    python examples/trl_prox.py MODEL PAIRS.jsonl OUT

PAIRS.jsonl: rows in any of TRL's preference formats (`prompt`, `chosen`, `rejected`).
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset

from comal_kernels.integrations.trl import ProxConfig, ProxTrainer


def main(model: str, pairs: str, out: str, **options: Any) -> ProxTrainer:
    """Train from `model`, which is reference and last iterate, and save to `out`."""
    config = ProxConfig(
        out, prox="inpo", eta=0.05, tau_eta_ratio=0.33, num_train_epochs=1, **options
    )
    rows = load_dataset("json", data_files=pairs, split="train")
    trainer = ProxTrainer(model, args=config, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4])
