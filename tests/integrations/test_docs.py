"""The code on TRL of docs/trl.md and of README.md, run as it stands there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from blocks import python_blocks
from tiny import byte_tokenizer, tiny_model

pytest.importorskip("trl")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from comal_kernels.integrations import trl

    monkeypatch.chdir(tmp_path)
    here = partial(trl.ProxConfig, use_cpu=True, bf16=False, report_to="none")
    monkeypatch.setattr(trl, "ProxConfig", here)  # the page's machine has a GPU
    model, tokenizer = tiny_model(), byte_tokenizer()
    rows = [{"prompt": f"{i}?", "chosen": " yes", "rejected": " no, no"} for i in range(4)]
    grpo = GRPOTrainer(
        tiny_model(),
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=GRPOConfig("grpo", use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=tokenizer,
    )
    names: dict[str, Any] = {
        "model": model,
        "reference": tiny_model(),
        "tokenizer": tokenizer,
        "pairs": Dataset.from_list(rows),
        "grpo_trainer": grpo,
    }
    for page, count in (("docs/trl.md", 4), ("README.md", 1)):
        blocks = python_blocks(ROOT / page)
        mine = [block for block in blocks if "trl" in block or page != "README.md"]
        assert len(mine) == count
        for block in mine:  # a later block uses the names of earlier ones
            exec(compile(block, page, "exec"), names)
