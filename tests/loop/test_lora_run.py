"""Whole runs with adapters: files, keys, resumption, merging."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from comal_fast.cli import main
from comal_fast.config import Config, load_config
from comal_fast.config.schema import LoraConfig
from comal_fast.context import Context
from comal_fast.loop import open_run, run_all
from comal_fast.model.logps import response_logps
from comal_fast.phases import generate, judge, logps, pair, train
from comal_fast.phases.logps import prompt_responses
from comal_fast.sweep.reuse import common_iterations
from comal_fast.training.trainer import Trainer
from comal_kernels.packing import PromptResponse
from resume import comparable

LORA = ["model.lora={r: 4, alpha: 8}", "training.learning_rate=1e-2", "training.save_steps=2"]
FEW = ["training.num_train_epochs=1", "training.train_batch_size=5"]
WEIGHTS = "model/adapter_model.safetensors"


def trained(config: Config, last: int) -> Context:
    """The iterations up to `last`, without evaluation and report."""
    with open_run(config) as context:
        for iteration in range(1, last + 1):
            for phase in (generate, judge, pair, logps, train):
                phase.run(context, iteration)
    return context


def options(tiny_run: Path, *more: str) -> list[str]:
    return [*LORA, *FEW, f"output_dir={tiny_run.parent / 'run'}", *more]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_run_files_and_merge(tiny_run: Path, tmp_path: Path, quantization: str) -> None:
    """Iteration 2 under ref_update_interval=1: its reference is π_1, an adapter."""
    from transformers import AutoModelForCausalLM

    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    chosen = options(
        tiny_run,
        "algorithm.ref_update_interval=1",
        f"model.quantization={quantization}",
        "pairing.labels=hard",
        f"training.gradient_checkpointing={quantization == 'nf4'}",
    )
    config = load_config(tiny_run, chosen)
    if quantization == "none":  # whole: evaluation, diagnostics and report too
        versions = run_all(config)["versions"].keys()
        assert "peft" in versions
        assert ("bitsandbytes" in versions) == bool(find_spec("bitsandbytes"))
        context = Context(config)
    else:
        context = trained(config, 2)
    for iterate in (1, 2):
        files = {f.name for f in (context.directory.iteration(iterate).path / "model").iterdir()}
        assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    one, two = (load_file(context.directory.iteration(t).path / WEIGHTS) for t in (1, 2))
    assert all(not torch.equal(one[name], two[name]) for name in one)  # all of it went on training
    rows = pq.read_table(context.directory.iteration(2).path / "logps.parquet").to_pylist()
    used = [i for i, row in enumerate(rows) if row["ref_logp"] is not None]
    samples = pq.read_table(context.directory.iteration(2).path / "samples.parquet")
    fresh = response_logps(
        context.policies.load(1), prompt_responses(samples, used), max_tokens=300
    )
    assert used == [i for i in used if rows[i]["ref_logp"] == rows[i]["last_logp"]]
    assert [rows[i]["last_logp"] for i in used] == pytest.approx(fresh.tolist(), abs=1e-4)
    losses = [row["loss"] for row in comparable(context.directory.path) if row["phase"] == "train"]
    assert losses[0] == pytest.approx(100, rel=1e-3)  # (1/2η)²: π_0 with B = 0 is π_0
    assert min(losses[1:]) < 99

    merged = tmp_path / "merged"
    assert main(["merge", str(context.directory), str(merged), "--iterate", "2"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert not (merged / "adapter_config.json").exists()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        ours, theirs = context.policies.load(2)(ids).logits, plain(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert main(["merge", str(context.directory), str(merged)]) == 2  # exists already


@pytest.mark.slow
def test_four_bits_from_a_gguf_file(smollm2: Any, tmp_path: Path) -> None:
    """Dequantised once, as without 4 bits; quantised at each load. It computes with those."""
    functional = pytest.importorskip("bitsandbytes.functional")
    model = smollm2.model_copy(update={"lora": LoraConfig(), "quantization": "nf4"})
    contexts = [
        Context(Config(model=options, output_dir=str(tmp_path)))
        for options in (model, model.model_copy(update={"quantization": "none"}))
    ]
    bits, floats = (context.policies.load(0) for context in contexts)
    stored = load_file(tmp_path / "iterations/0000/model/model.safetensors")
    assert all(tensor.is_floating_point() for tensor in stored.values())
    assert contexts[0].policies.key(0) != contexts[1].policies.key(0)
    layers = [p for p in bits.parameters() if p.dtype == torch.uint8]
    assert len(layers) == 7 * 30
    assert bits.get_memory_footprint() < 0.4 * floats.get_memory_footprint()
    sequence = [PromptResponse([1, 4093, 198], [504, 3575, 282, 4649, 314, 7042, 30])]
    here, there = (response_logps(m, sequence, max_tokens=100)[0] for m in (bits, floats))
    assert here != there
    for name, packed in bits.named_parameters():
        if packed.dtype == torch.uint8:
            values = functional.dequantize_4bit(packed.data, packed.quant_state)
            floats.get_parameter(name).data.copy_(values)
    dequantised = response_logps(floats, sequence, max_tokens=100)[0]
    assert here == pytest.approx(dequantised, rel=1e-4)


def test_reference_and_last_iterate_in_one_pass(tiny_run: Path) -> None:
    """In iteration 2 the reference is still π_0, the last iterate π_1."""
    context = trained(load_config(tiny_run, options(tiny_run)), 2)
    rows = pq.read_table(context.directory.iteration(2).path / "logps.parquet").to_pylist()
    used = [i for i, row in enumerate(rows) if row["ref_logp"] is not None]
    samples = pq.read_table(context.directory.iteration(2).path / "samples.parquet")
    sequences = prompt_responses(samples, used)
    for name, iterate in (("ref_logp", 0), ("last_logp", 1)):
        apart = response_logps(context.policies.load(iterate), sequences, max_tokens=300)
        assert [rows[i][name] for i in used] == pytest.approx(apart.tolist(), abs=1e-4)
    assert all(rows[i]["ref_logp"] != rows[i]["last_logp"] for i in used)


def test_adapter_options_are_part_of_the_keys(tiny_run: Path) -> None:
    context = trained(load_config(tiny_run, options(tiny_run)), 1)
    names = ("samples.parquet", "pairs.parquet", "logps.parquet", "model")

    def stamps() -> dict[str, int]:
        return {n: (context.directory.iteration(1).path / n).stat().st_mtime_ns for n in names}

    before = stamps()
    for change in ("model.lora.r=2", "model.lora.target_modules=q_proj", "model.lora=null"):
        trained(load_config(tiny_run, options(tiny_run, change)), 1)
        after = stamps()
        # π_0 has no adapter: only what is trained is made anew
        assert {n for n in names if after[n] != before[n]} == {"model"}, change
        before = after
    assert not (context.directory.iteration(1).path / WEIGHTS).exists()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_broken_off_while_training_ends_the_same(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    """With dropout: its masks are drawn from the step, so a resumed step draws the same."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    calm, broken = (
        load_config(
            tiny_run,
            [
                *LORA,
                "model.lora.dropout=0.2",
                f"model.quantization={quantization}",
                "training.num_train_epochs=2",
                f"output_dir={tmp_path / name}",
            ],
        )
        for name in ("calm", "broken")
    )
    expected = load_file(trained(calm, 1).directory.iteration(1).path / WEIGHTS)
    step, taken = Trainer.optimizer_step, [0]

    def breaking(self: Trainer) -> dict[str, Any]:
        taken[0] += 1
        if taken[0] == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "optimizer_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        trained(broken, 1)
    folder = Path(broken.output_dir) / "iterations/0001"
    assert not (folder / WEIGHTS).exists()
    assert json.loads((folder / "checkpoint/trainer.json").read_text())["step"] == 2
    trained(broken, 1)
    steps = len([r for r in comparable(Path(calm.output_dir)) if r["phase"] == "train"])
    # three, the broken one, and what the checkpoint lacked, the third among it
    assert taken[0] == steps + 2 > 5
    found = load_file(folder / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(tensor.any() for name, tensor in found.items() if ".lora_B." in name)
    assert comparable(Path(calm.output_dir)) == comparable(Path(broken.output_dir))


def test_an_iterate_trained_otherwise_is_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture
) -> None:
    trained(load_config(tiny_run, options(tiny_run)), 1)
    changes = {
        "model.lora=null": "0001/model: it holds an adapter, model.lora asks for none",
        "model.lora.r=2": "0001/model: its adapter has r=4, model.lora asks for 2",
    }
    for change, words in changes.items():
        arguments = ["generate", str(tiny_run), *options(tiny_run, change), "--iteration", "2"]
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_bad_layers_are_named_before_anything_is_sampled(
    tiny_run: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["run", str(tiny_run), *options(tiny_run, "model.lora.target_modules=lm_head")]
    assert main(arguments) == 2
    assert "target_modules: lm_head is none of the layers" in capsys.readouterr().err
    assert not (tiny_run.parent / "run/iterations").exists()


def test_merge_needs_a_lora_run(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    config = load_config(tiny_run, ["algorithm.iterations=1", "training.num_train_epochs=1"])
    Context(config).directory.path.mkdir()
    Context(config).write_headers()
    assert main(["merge", config.output_dir, str(tiny_run.parent / "merged")]) == 2
    assert "trained without model.lora" in capsys.readouterr().err


def test_sweep_shares_what_comes_before_the_adapter(tiny_run: Path) -> None:
    def config(*more: str) -> Any:
        return load_config(tiny_run, list(more))

    full, small, large = config(), config("model.lora={r: 2}"), config("model.lora={r: 4}")
    assert common_iterations(small, large) == common_iterations(full, small) == 0
    assert common_iterations(small, config("model.lora={r: 2}", "algorithm.iterations=1")) == 1
    pytest.importorskip("bitsandbytes")
    quantized = config("model.lora={r: 2}", "model.quantization=nf4")
    assert common_iterations(small, quantized) is None
