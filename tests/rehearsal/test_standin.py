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
    pytest.mark.skipif(cuda_standin.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA's own"),
]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `standin_driver.py` says of a tiny run in bfloat16."""
    from tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("standin")
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
evaluation: {{bootstrap: 200}}
"""
    )
    out = folder / "said.json"
    paths = [str(ROOT / "tests" / "support"), str(ROOT / "kernels"), str(ROOT)]
    done = subprocess.run(
        [sys.executable, str(HERE / "standin_driver.py"), str(folder / "config.yaml"), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def test_a_whole_run(rehearsed: dict[str, Any]) -> None:
    """Sampling by a captured graph, judging, log-probs, training, evaluation; nothing is mixed."""
    assert rehearsed["run"]["device"] == "stand-in for an H100"
    assert 0.0 < rehearsed["run"]["win_rate"] < 1.0
    assert {"generate 1", "logps 1", "train 1"} <= rehearsed["run"]["waits"].keys()


def test_every_mode_trains(rehearsed: dict[str, Any]) -> None:
    failed = {m: said["error"] for m, said in rehearsed["steps"].items() if "error" in said}
    assert not failed, "\n".join(f"{mode}: {why}" for mode, why in failed.items())
    for mode, said in rehearsed["steps"].items():
        assert all(map(math.isfinite, said["losses"])), mode
    losses = {mode: said["losses"][0] for mode, said in rehearsed["steps"].items()}
    for mode in ("one pass", "sdpa", "recomputed", "activations on the host", "float32 moments"):
        assert losses[mode] == pytest.approx(losses["plain"], rel=0.02), mode


def test_the_host_waits_once_a_step(rehearsed: dict[str, Any]) -> None:
    """For the gradients' norm, in which a step's numbers come along; never in a packed pass."""
    for mode, said in rehearsed["steps"].items():
        if "host" in mode:  # moments and activations there wait for their copies by events
            continue
        assert said["passes"] > 1 or mode != "plain"
        assert sum(said["waits"].values()) == 1, (mode, said["waits"])
