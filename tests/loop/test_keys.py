"""Options that change how something is computed and never what: in no key, and so they don't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comal_fast.config import Config, load_config
from comal_fast.config.generation import VllmConfig, VllmOptions
from comal_fast.config.options import how_names, what
from comal_fast.config.oracle import EndpointConfig
from comal_fast.loop import run_all
from comal_fast.oracles import make_oracle, oracle_key
from comal_fast.store.directory import RunDirectory
from comal_fast.training.trainer import Trainer

# an unclipped run, in whose terms each of them is allowed
BASE = ["algorithm.iterations=1", "training.max_grad_norm=0"]
OTHERS = {
    "output_dir": ["output_dir=elsewhere"],
    "phases": ["phases=process"],
    "training.optimizer_in_backward": ["training.optimizer_in_backward=true"],
    "training.optimizer_offload": [
        "training.optimizer_offload=true",
        "training.optimizer_in_backward=true",
    ],
    "training.gradient_checkpointing": ["training.gradient_checkpointing=true"],
    "training.activation_memory": ["training.activation_memory=0.1MiB"],
    "training.offload_activations": [
        "training.offload_activations=true",
        "training.gradient_checkpointing=true",
    ],
    "training.deterministic": ["training.deterministic=true"],
    "training.save_steps": ["training.save_steps=3"],
    "training.save_minutes": ["training.save_minutes=0.0001"],
    "training.keep_checkpoints": ["training.keep_checkpoints=2"],
    "evaluation.report": ["evaluation.report=true"],
    "logging": ["logging=csv"],
    "model.pickled_weights": ["model.pickled_weights=true"],
}

# of an oracle: what it is asked stays the same
ASKED: dict[str, Any] = {
    "oracle.cache": "mine.sqlite",
    "oracle.max_concurrency": 3,
    "oracle.timeout": 9.0,
    "oracle.max_retries": 2,
    "oracle.max_requests": 7,
    "oracle.max_tokens": 8,
}

# of vLLM: the policy that it samples stays the same
ENGINE: dict[str, Any] = {
    "generation.vllm.python": "python3.12",
    "generation.vllm.tensor_parallel_size": 2,
    "generation.vllm.data_parallel_size": 4,
    "generation.vllm.gpu_memory_utilization": 0.5,
    "generation.vllm.max_model_len": 300,
    "generation.vllm.enforce_eager": True,
    "generation.vllm.max_num_seqs": 8,
    "generation.vllm.stall_minutes": 1.0,
}


def artefacts(config: Config) -> dict[str, bytes]:
    """Path in the run directory → content, of everything that carries a key, and of the weights."""
    run = RunDirectory(config.output_dir)
    kinds = ("*.parquet", "evaluation.json", "diagnostics.json", "comal.json", "*.safetensors")
    files = (f for kind in kinds for f in run.iterations_folder.glob(f"*/**/{kind}"))
    files = (f for f in files if f.parent.name != "metrics")  # they hold times
    return {str(f.relative_to(run.path)): f.read_bytes() for f in files}


def times(config: Config) -> dict[str, int]:
    files = RunDirectory(config.output_dir).iterations_folder.rglob("*")
    return {str(f): f.stat().st_mtime_ns for f in files if f.is_file()}


def test_each_of_them_is_tried() -> None:
    judges = {"oracle.pickled_weights"}  # as of the policy's weights, which are in OTHERS
    assert set(OTHERS) | set(ASKED) | set(ENGINE) | judges == set(how_names(Config))


@pytest.mark.parametrize("name", ASKED)
def test_an_oracle_asked_otherwise_says_the_same(name: str) -> None:
    options = EndpointConfig(base_url="http://localhost:1/v1", model="judge")
    other = options.model_copy(update={name.partition(".")[2]: ASKED[name]})
    assert other != options
    assert len({oracle_key(make_oracle(o), o) for o in (options, other)}) == 1


@pytest.mark.parametrize("name", ENGINE)
def test_an_engine_run_otherwise_samples_the_same(name: str) -> None:
    plain, option = VllmConfig(), name.rpartition(".")[2]
    other = VllmConfig(vllm=VllmOptions(**{option: ENGINE[name]}))
    assert other != plain and what(other) == what(plain)
    assert what(VllmConfig(vllm=VllmOptions(quantization="fp8"))) != what(plain)


def test_keys_hold_the_others_alone(tiny_run: Path) -> None:
    config = load_config(tiny_run)
    for name in OTHERS:
        group, _, option = name.rpartition(".")
        assert option not in what(getattr(config, group) if group else config), name


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "output_dir"])
def test_weights_and_keys_are_the_same(tiny_run: Path, tmp_path: Path, name: str) -> None:
    plain = load_config(tiny_run, [*BASE, f"output_dir={tmp_path / 'plain'}"])
    run_all(plain)
    before = times(plain)
    other = load_config(tiny_run, [*BASE, *OTHERS[name], f"output_dir={tmp_path / 'other'}"])
    run_all(other)
    ours, theirs = artefacts(plain), artefacts(other)
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    run_all(load_config(tiny_run, [*BASE, *OTHERS[name], f"output_dir={tmp_path / 'plain'}"]))
    assert times(plain) == before  # switched on later, it makes nothing anew


IN_BACKWARD = ["training.optimizer_in_backward=true"]
OFFLOADED = [*IN_BACKWARD, "training.optimizer_offload=true"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([], IN_BACKWARD),
        ([], ["training.optimizer_offload=true"]),
        (IN_BACKWARD, []),
        (OFFLOADED, []),
        (IN_BACKWARD, OFFLOADED),
        ([], ["training.gradient_checkpointing=true"]),
    ],
    ids=str,
)
def test_a_checkpoint_is_gone_on_from_with_another(
    tiny_run: Path,
    tmp_path: Path,
    first: list[str],
    then: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an out-of-memory error: nothing is trained twice, and the weights are the same."""
    given = [*BASE, "training.save_steps=3"]
    calm = load_config(tiny_run, [*given, f"output_dir={tmp_path / 'calm'}"])
    run_all(calm)
    step = Trainer.optimizer_step
    taken: list[int] = []

    def cut(trainer: Trainer) -> dict[str, Any]:
        if trainer.step == 5:
            raise RuntimeError("out of memory")
        taken.append(trainer.step)
        return step(trainer)

    cut_off = f"output_dir={tmp_path / 'cut'}"
    monkeypatch.setattr(Trainer, "optimizer_step", cut)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_all(load_config(tiny_run, [*given, *first, cut_off]))
    assert taken == [0, 1, 2, 3, 4]
    monkeypatch.setattr(
        Trainer, "optimizer_step", lambda trainer: taken.append(trainer.step) or step(trainer)
    )
    config = load_config(tiny_run, [*given, *then, cut_off])
    run_all(config)
    assert taken[5:] == list(range(3, len(taken) - 2)), "it went on from its checkpoint"
    assert artefacts(config) == artefacts(calm)
