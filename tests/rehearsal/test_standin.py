"""The code for GPUs on a CUDA device that is not there: it runs, and the host waits for nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_standin

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # a compiler, and three minutes of a core of its own
    pytest.mark.skipif(cuda_standin.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
]


def rehearsed(folder: Path) -> dict[str, Any]:
    """What `standin_driver.py` says of a tiny run in bfloat16."""
    from tiny import byte_tokenizer, tiny_model

    tiny_model().to(torch.bfloat16).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Say {'very ' * (i % 4)}nicely what {i} is."} for i in range(14)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        f"""
output_dir: {folder / "run"}
phases: inline
model: {{name_or_path: {folder / "model"}, device: cuda, dtype: bfloat16, liger_kernels: off}}
data: {{prompts: {folder / "prompts.jsonl"}, eval_prompts: 4, prompts_per_iteration: 5,
       max_length: 128}}
generation: {{num_generations: 3, max_new_tokens: 8, batch_size: 6}}
oracle: {{target_words: 2}}
algorithm: {{eta: 0.05, iterations: 1}}
training: {{learning_rate: 1.0e-3, num_train_epochs: 2, train_batch_size: 4, save_steps: 1,
            max_tokens_per_microbatch: 120}}
evaluation: {{bootstrap: 200, report: false}}
"""
    )
    site = str(ROOT / "tests/support/standin_site")
    return said_by(
        "standin_driver.py", folder / "said.json", str(folder / "config.yaml"), site=site
    )


def said_by(driver: str, out: Path, *given: str, site: str | None = None) -> dict[str, Any]:
    """What a driver leaves in its last argument, in a process of its own."""
    paths = [str(ROOT / "tests" / "support"), str(ROOT / "kernels"), str(ROOT)]
    paths = [site, *paths] if site else paths
    done = subprocess.run(
        [sys.executable, str(HERE / driver), *given, str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def test_a_run_and_every_mode_of_training(tmp_path: Path) -> None:
    """Nothing is mixed from sampling by captured graphs to evaluation; a step waits once.

    For the gradients' norm, with which a step's numbers come along; never in a packed pass.
    """
    said = rehearsed(tmp_path)
    assert said["run"]["device"] == "stand-in for an H100"
    assert 0.0 < said["run"]["win_rate"] < 1.0
    assert {"generate 1", "logps 1", "train 1"} <= said["run"]["waits"].keys()
    modes = said["steps"]
    failed = {mode: found["error"] for mode, found in modes.items() if "error" in found}
    assert not failed, "\n".join(f"{mode}: {why}" for mode, why in failed.items())
    for mode, found in modes.items():
        assert all(map(math.isfinite, found["losses"])), mode
        assert sum(found["waits"].values()) == 1, (mode, found["waits"])
    assert modes["plain"]["passes"] > 1
    losses = {mode: found["losses"][0] for mode, found in modes.items()}
    same = {"one pass", "sdpa", "recomputed", "activations on the host", "float32 moments"}
    for mode in same | {mode for mode in modes if mode.startswith("Liger")}:
        assert losses[mode] == pytest.approx(losses["plain"], rel=0.02), mode


def test_one_kernel_whatever_the_lengths(tmp_path: Path) -> None:
    """Fifty random packs: every kernel of a head is compiled once."""
    said = said_by("variants_driver.py", tmp_path / "variants.json")
    for head, kernels in said.items():
        assert len(kernels) > 5, head
        assert {name: n for name, n in kernels.items() if n > 1} == {}, head
