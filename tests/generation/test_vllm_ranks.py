"""Under torchrun each node starts its own engines and takes its share of the prompts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from comal_fast.store.directory import RunDirectory
from launch import torchrun

HERE = Path(__file__).parent


STANDIN = HERE.parent / "support" / "standin"


def run(config: Path, output: Path, extra: list[str], nodes: int) -> list[str]:
    """What evaluates π_0 on two ranks, of one node or of two; their standard errors."""
    arguments = ["-m", "comal_fast", "evaluate", str(config), "--iteration", "0"]
    arguments += [f"output_dir={output}", "generation.engine=vllm", *extra]
    if nodes == 1:
        done = torchrun(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return [done.stderr]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node"]
    launcher += ["1", "--master-addr", "localhost", "--master-port", str(port)]
    each = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(node), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in each]
    assert [process.returncode for process in each] == [0, 0], said
    return said


def check(output: Path, prompts: int) -> None:
    """Two engines, each with half of the prompts, all of which have their responses."""
    folder = RunDirectory(output).iteration(0)
    samples = folder.eval_samples.read()
    assert samples.num_rows == prompts == len(set(samples["prompt_id"].to_pylist()))
    logs = sorted(folder.path.glob("eval_samples.vllm-*.log"))
    assert [log.name for log in logs] == [f"eval_samples.vllm-{i}.log" for i in range(2)]
    assert not list(folder.path.glob("*.shards"))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks_have_two_engines(
    tiny_run: Path, tmp_path: Path, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    run(tiny_run, tmp_path / "run", [], nodes)
    check(tmp_path / "run", 4)
    logs = (tmp_path / "run").rglob("*.vllm-*.log")
    assert [log.read_text().count("step") for log in sorted(logs)] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks_with_vllm(tmp_path: Path, nodes: int) -> None:
    python = os.environ.get("COMAL_FAST_VLLM")
    if python is None:
        pytest.skip("no vLLM; name a Python that has it in COMAL_FAST_VLLM (`make vllm`)")
    from tiny import byte_tokenizer, tiny_model

    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    tiny_model(**shape).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps({"prompt": f"Say nicely what {i} is."}) + "\n" for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    config = {
        "model": {"name_or_path": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl"), "eval_prompts": 8, "max_length": 128},
        "generation": {"num_generations": 2, "max_new_tokens": 16},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    extra = [
        f"generation.vllm.python={python}",
        "generation.vllm.enforce_eager=true",
        "generation.vllm.gpu_memory_utilization=0.05",
    ]
    run(tmp_path / "run.yaml", tmp_path / "run", extra, nodes)
    check(tmp_path / "run", 8)
